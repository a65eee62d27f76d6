// The filter of the verdict table: without scripts its form stays hidden, and the table is whole.
for (const form of document.querySelectorAll("form.verdict-filter")) {
  const rows = [...document.querySelectorAll("table.verdicts.full tbody tr")];
  const selects = [...form.querySelectorAll("select")];
  const count = form.querySelector("output");
  const apply = () => {
    let shown = 0;
    for (const row of rows) {
      row.hidden = selects.some((select) => select.value && row.dataset[select.name] !== select.value);
      shown += !row.hidden;
    }
    count.textContent = `${shown} of ${rows.length} claims`;
    const chosen = new URLSearchParams(selects.filter((s) => s.value).map((s) => [s.name, s.value]));
    history.replaceState(null, "", chosen.size ? `#?${chosen}` : location.pathname + location.search);
  };
  const wanted = new URLSearchParams(location.hash.startsWith("#?") ? location.hash.slice(2) : "");
  for (const select of selects) {
    const value = wanted.get(select.name);
    if ([...select.options].some((option) => option.value === value)) select.value = value;
  }
  form.hidden = false;
  form.addEventListener("change", apply);
  form.addEventListener("reset", () => setTimeout(apply));
  apply();
}
