// Runs before the first paint, so that a chosen theme does not flash. Everything else is a module.
try {
  const theme = localStorage.getItem("theme");
  if (theme === "light" || theme === "dark") document.documentElement.dataset.theme = theme;
} catch {
  // no storage in this browser: the system's theme
}
