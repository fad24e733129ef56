// Filters and pages the list of items; without it the list is complete and plain.
(() => {
  const form = document.getElementById("filter");
  if (!form) return;
  const items = [...document.querySelectorAll(".items > li")];
  const texts = items.map((item) => item.textContent.toLowerCase());
  const found = document.getElementById("found");
  const pages = document.getElementById("pages");
  const size = 20;
  let page = 0;

  function matches(item, text) {
    const { task, method, change, text: wanted } = form.elements;
    if (task.value && item.dataset.task !== task.value) return false;
    const changes = item.dataset.changes.trim().split(" ").map((each) => each.split(":"));
    const fits = ([by, kind]) => (!method.value || by === method.value) && (!change.value || kind === change.value);
    return changes.some(fits) && text.includes(wanted.value.trim().toLowerCase());
  }

  function show() {
    const chosen = items.filter((item, index) => matches(item, texts[index]));
    const count = Math.max(1, Math.ceil(chosen.length / size));
    page = Math.min(Math.max(page, 0), count - 1);
    const start = page * size;
    const visible = new Set(chosen.slice(start, start + size));
    items.forEach((item) => { item.hidden = !visible.has(item); });
    const method = form.elements.method.value;
    document.querySelectorAll(".items [data-method]").forEach((answer) => {
      answer.hidden = method !== "" && answer.dataset.method !== method;
    });
    const range = chosen.length > size ? `, ${start + 1} to ${start + visible.size} below` : "";
    found.textContent = `${chosen.length} of ${items.length} items${range}`;
    pages.hidden = count === 1;
    pages.querySelector("span").textContent = `page ${page + 1} of ${count}`;
    const [previous, next] = pages.querySelectorAll("button");
    previous.disabled = page === 0;
    next.disabled = page === count - 1;
  }

  form.addEventListener("input", () => { page = 0; show(); });
  form.addEventListener("submit", (event) => event.preventDefault());
  pages.addEventListener("click", (event) => {
    if (event.target.tagName !== "BUTTON") return;
    page += Number(event.target.value);
    show();
    document.getElementById("items").scrollIntoView();
  });
  form.hidden = found.hidden = false;
  show();
})();
