"use strict";
// What every page has: light and dark, and figures that are wider than a telephone.
(() => {
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const theme = document.getElementById("theme");
  const isDark = () => (document.documentElement.dataset.theme || (dark.matches ? "dark" : "light")) === "dark";
  const settle = () => {
    theme.textContent = isDark() ? "Light" : "Dark";
    theme.title = `${theme.textContent}: show the page in ${theme.textContent.toLowerCase()} colours`;
    theme.setAttribute("aria-label", theme.title);
    document.dispatchEvent(new Event("theme"));
  };
  theme.addEventListener("click", () => {
    document.documentElement.dataset.theme = isDark() ? "light" : "dark";
    settle();
  });
  dark.addEventListener("change", settle);
  matchMedia("print").addEventListener("change", settle);
  settle();

  // A figure that is wider than the page is scrolled to, by keyboard as well.
  const wide = new ResizeObserver((entries) => entries.forEach(({ target }) =>
    target.scrollWidth > target.clientWidth ? (target.tabIndex = 0) : target.removeAttribute("tabindex")));
  document.querySelectorAll("figure").forEach((figure) => wide.observe(figure));
})();
