// Keys: a accept, r reject, s skip, b back, e into the text, Esc out of it, Ctrl+Enter saves it.
(() => {
  const buttons = { a: "accept", r: "reject", s: "skip", b: "back" };
  const box = () => document.querySelector("#text textarea");
  const press = (event, name) => {
    event.preventDefault();
    document.getElementById(name)?.click();
  };
  document.addEventListener("keydown", (event) => {
    if (event.repeat || event.isComposing) return;
    const control = event.ctrlKey || event.metaKey;
    if (event.target === box()) {
      if (event.key === "Escape") box().blur();
      if (event.key === "Enter" && control) press(event, "save");
      return;
    }
    if (control || event.altKey || event.target.matches("input, textarea, select")) return;
    const key = event.key.toLowerCase();
    if (key in buttons) press(event, buttons[key]);
    if (key === "e" && box()) {
      event.preventDefault();
      box().focus();
    }
  });
})();
