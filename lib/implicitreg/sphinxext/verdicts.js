// The filter of the verdict table: without scripts its form stays hidden, and the table is whole.
for (const form of document.querySelectorAll("form.verdict-filter")) {
  const rows = [...document.querySelectorAll("table.verdicts.full tbody tr")];
  const selects = [...form.querySelectorAll("select")];
  const count = form.querySelector("output");
  const show = () => {
    let shown = 0;
    for (const row of rows) {
      row.hidden = selects.some((select) => select.value && row.dataset[select.name] !== select.value);
      shown += !row.hidden;
    }
    count.textContent = `${shown} of ${rows.length} claims`;
  };
  // The choice stands in the address, so that it can be passed on.
  const remember = () => {
    show();
    const chosen = String(new URLSearchParams(selects.filter((s) => s.value).map((s) => [s.name, s.value])));
    history.replaceState(null, "", chosen ? `#?${chosen}` : location.pathname + location.search);
  };
  const read = () => {
    if (!location.hash.startsWith("#?")) return;
    const wanted = new URLSearchParams(location.hash.slice(2));
    for (const select of selects) {
      const value = wanted.get(select.name) ?? "";
      select.value = [...select.options].some((option) => option.value === value) ? value : "";
    }
  };
  read();
  form.hidden = false;
  show();
  form.addEventListener("change", remember);
  form.addEventListener("reset", () => setTimeout(remember));
  addEventListener("hashchange", () => {
    read();
    show();
  });
}
