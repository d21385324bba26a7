// Sets the chosen colors before anything is drawn.
const chosen = localStorage.getItem("deepcluster-theme");
if (chosen === "light" || chosen === "dark") document.documentElement.dataset.theme = chosen;
