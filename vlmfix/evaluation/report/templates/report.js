// Filters and pages the list of samples; without it the list is complete and plain.
(() => {
  const form = document.getElementById("filter");
  if (!form) return;
  const samples = [...document.querySelectorAll(".samples > li")];
  const texts = samples.map((sample) => sample.textContent.toLowerCase());
  const found = document.getElementById("found");
  const pages = document.getElementById("pages");
  const size = 20;
  let page = 0;

  function matches(sample, text) {
    const { task, method, change, text: wanted } = form.elements;
    if (task.value && sample.dataset.task !== task.value) return false;
    const changes = sample.dataset.changes.trim().split(" ").map((each) => each.split(":"));
    const fits = ([by, kind]) => (!method.value || by === method.value) && (!change.value || kind === change.value);
    return changes.some(fits) && text.includes(wanted.value.trim().toLowerCase());
  }

  function show() {
    const chosen = samples.filter((sample, index) => matches(sample, texts[index]));
    const count = Math.max(1, Math.ceil(chosen.length / size));
    page = Math.min(Math.max(page, 0), count - 1);
    const start = page * size;
    const visible = new Set(chosen.slice(start, start + size));
    samples.forEach((sample) => { sample.hidden = !visible.has(sample); });
    const method = form.elements.method.value;
    document.querySelectorAll(".samples [data-method]").forEach((answer) => {
      answer.hidden = method !== "" && answer.dataset.method !== method;
    });
    const range = chosen.length > size ? `, ${start + 1} to ${start + visible.size} below` : "";
    found.textContent = `${chosen.length} of ${samples.length} samples${range}`;
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
    document.getElementById("samples").scrollIntoView();
  });
  form.hidden = found.hidden = false;
  show();
})();
