// Sets the chosen colors before anything is drawn.
const chosen = localStorage.getItem("deepcluster-theme");
if (chosen === "light" || chosen === "dark") document.documentElement.dataset.theme = chosen;
// The cookie has the token now; where the address is shown, kept or sent on, it has no place.
if (location.search) history.replaceState(null, "", location.pathname + location.hash);
