// Who looks: the token, and how the page looks to them.

import { get, keepToken, token } from "./api.js";
import { byId, setText, show } from "./dom.js";

const THEME = "ghostcacher-theme";
const THEMES = ["auto", "light", "dark"];
const UNAUTHORIZED = 401;

// Ask for the token until the router takes one. Resolves when it does.
export function signIn(why) {
  const dialog = byId("login");
  if (dialog.open) return new Promise(() => {}); // It is being asked for already.
  keepToken(null);
  show(byId("login-error"), why);
  dialog.showModal();
  byId("token").focus();
  return new Promise((resolve) => {
    const form = byId("login-form");
    const stop = new AbortController();
    // It cannot be sent away: there is nothing to see behind it. Browsers close it at a second Escape, whatever it says.
    dialog.addEventListener("cancel", (event) => event.preventDefault(), { signal: stop.signal });
    dialog.addEventListener("close", () => dialog.showModal(), { signal: stop.signal });
    form.addEventListener(
      "submit",
      async (event) => {
        event.preventDefault();
        const given = byId("token").value.trim();
        if (!(await accepted(given))) return;
        keepToken(given);
        byId("token").value = "";
        stop.abort();
        dialog.close();
        resolve();
      },
      { signal: stop.signal },
    );
  });
}

async function accepted(given) {
  show(byId("login-error"), "");
  if (!/^[\x21-\x7e]+( [\x21-\x7e]+)*$/.test(given)) {
    show(byId("login-error"), "Expected the token: printable ASCII");
    return false;
  }
  try {
    await get("status", given);
    return true;
  } catch (error) {
    show(byId("login-error"), error.status === UNAUTHORIZED ? "The router refused this token" : error.message);
    byId("token").select();
    return false;
  }
}

export function setUpSession() {
  byId("sign-out").addEventListener("click", () => {
    keepToken(null);
    location.reload();
  });
  byId("theme").addEventListener("click", () => {
    const now = document.documentElement.dataset.theme || "auto";
    setTheme(THEMES[(THEMES.indexOf(now) + 1) % THEMES.length]);
  });
  setTheme(kept());
}

export function showSession() {
  byId("sign-out").hidden = token() === null;
}

function setTheme(theme) {
  document.documentElement.dataset.theme = theme;
  setText(byId("theme"), `Theme: ${theme}`);
  try {
    localStorage.setItem(THEME, theme);
  } catch {
    // A browser that keeps nothing: it is asked again next time.
  }
}

function kept() {
  try {
    const theme = localStorage.getItem(THEME);
    return THEMES.includes(theme) ? theme : "auto";
  } catch {
    return "auto";
  }
}
