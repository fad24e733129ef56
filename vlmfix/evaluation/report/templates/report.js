// Filters and pages lists of samples; without it the lists are complete and plain.
for (const browser of document.querySelectorAll(".browser")) {
  const form = browser.querySelector(".filter");
  const samples = [...browser.querySelectorAll(".samples > li")];
  const texts = samples.map((sample) => sample.textContent.toLowerCase());
  const found = browser.querySelector(".found");
  const pages = browser.querySelector(".pages");
  const size = 20;
  let page = 0;

  const chosen = (name) => form.elements[name]?.value ?? "";

  function matches(sample, text) {
    if (chosen("task") && sample.dataset.task !== chosen("task")) return false;
    if (!text.includes(chosen("text").trim().toLowerCase())) return false;
    const [method, change] = [chosen("method"), chosen("change")];
    if (!method && !change) return true;
    const changes = sample.dataset.changes.trim().split(" ").map((each) => each.split(":"));
    return changes.some(([by, kind]) => (!method || by === method) && (!change || kind === change));
  }

  function show() {
    const fitting = samples.filter((sample, index) => matches(sample, texts[index]));
    const count = Math.max(1, Math.ceil(fitting.length / size));
    page = Math.min(Math.max(page, 0), count - 1);
    const start = page * size;
    const visible = new Set(fitting.slice(start, start + size));
    samples.forEach((sample) => { sample.hidden = !visible.has(sample); });
    const method = chosen("method");
    browser.querySelectorAll("[data-method]").forEach((answer) => {
      answer.hidden = method !== "" && answer.dataset.method !== method;
    });
    const range = fitting.length > size ? `, ${start + 1} to ${start + visible.size} below` : "";
    found.textContent = `${fitting.length} of ${samples.length} samples${range}`;
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
    browser.scrollIntoView();
  });
  form.hidden = found.hidden = false;
  show();
}
