// Keeps a page current. Everything works without it; nothing is decided by it.
// A stream tells that something changed; the page then fetches itself and takes over the parts that are new. What somebody
// is typing, and the preview that somebody is reading, are never replaced under them.
"use strict";
(() => {
  const $ = (id) => document.getElementById(id);
  const signin = $("signin");
  if (signin) {
    if (signin.dataset.auto) {
      history.replaceState(null, "", "/in"); // the token is not to stay in the address
      signin.submit();
    }
    return;
  }
  if (!document.body.dataset.in) return;

  const store = {
    get(key) { try { return localStorage.getItem(key); } catch { return null; } },
    set(key, value) { try { localStorage.setItem(key, value); } catch { /* private browsing */ } },
  };

  // --- ages -------------------------------------------------------------------------------------------------
  let loaded = performance.now();
  const age = (s) => s < 60 ? s + "s" : s < 3600 ? Math.floor(s / 60) + "m" : s < 172800 ? Math.floor(s / 3600) + "h" : Math.floor(s / 86400) + "d";
  setInterval(() => {
    const passed = Math.floor((performance.now() - loaded) / 1000);
    for (const t of document.querySelectorAll("time[data-age]")) {
      const text = age(Number(t.dataset.age) + passed);
      if (t.textContent !== text) t.textContent = text;
    }
  }, 1000);

  // --- what waits -------------------------------------------------------------------------------------------
  const title = document.title.replace(/^\(\d+\) /, "");
  let open = null;
  function count(n) {
    if (n === open) return;
    document.title = (n > 0 ? "(" + n + ") " : "") + title;
    $("favicon").href = "/favicon.svg" + (n > 0 ? "?n=" + n : "");
    const c = $("count");
    c.textContent = n > 0 ? n : "";
    c.hidden = n < 1;
    if (open !== null) $("said").textContent = n === 1 ? "One proposal waits" : n + " proposals wait";
    open = n;
  }

  // --- notifications ----------------------------------------------------------------------------------------
  let told = null;
  function announce(newest) {
    const known = told || new Set(newest.map((a) => a.key));
    const fresh = newest.filter((a) => !known.has(a.key));
    told = new Set([...fresh.map((a) => a.key), ...[...known].slice(0, 2000)]);
    if (!fresh.length || !("Notification" in window) || Notification.permission !== "granted" || store.get("notify") !== "1") return;
    const one = fresh[0];
    const n = fresh.length === 1
      ? new Notification((one.danger ? "Danger: " : "") + one.bottle + " asks", { body: one.text, tag: one.key })
      : new Notification(fresh.length + " new proposals", { body: fresh.slice(0, 3).map((a) => a.bottle + ": " + a.text).join("\n"), tag: "several" });
    n.onclick = () => { window.focus(); location.assign(fresh.length === 1 ? one.url : "/"); };
  }
  const notify = $("notify");
  if ("Notification" in window && notify) {
    const show = () => { notify.textContent = Notification.permission === "granted" && store.get("notify") === "1" ? "Do not notify me" : "Notify me of new proposals"; };
    notify.hidden = Notification.permission === "denied";
    show();
    notify.addEventListener("click", async () => {
      if (Notification.permission === "granted" && store.get("notify") === "1") store.set("notify", "0");
      else if (await Notification.requestPermission() === "granted") store.set("notify", "1");
      show();
    });
  }

  // --- taking over what is new ------------------------------------------------------------------------------
  const liveArea = $("live");
  const card = $("card");
  let busy = false, again = false, late = 0;

  const reading = () => { const s = getSelection(); return s && !s.isCollapsed; };
  const typing = (el) => el && el.matches("input:not([type=checkbox]), textarea, select");

  async function refresh() {
    if (!liveArea && !card) return;
    if (busy) { again = true; return; }
    busy = true;
    try {
      const r = await fetch(card ? card.dataset.url : location.href, { headers: { "Supervise-Live": "1" }, cache: "no-store" });
      if (r.status === 401) return signedOut();
      if (r.status === 404 && card) return; // pruned: what is on the page stays readable
      if (!r.ok) { clearTimeout(late); late = setTimeout(refresh, 2000); return; }
      const doc = new DOMParser().parseFromString(await r.text(), "text/html");
      if (card) cardFrom(doc); else liveFrom(doc);
    } catch { /* the stream tells when the desk is gone */ } finally {
      busy = false;
      if (again) { again = false; refresh(); }
    }
  }

  // What a part shows but for its ages, which go on by themselves: the same again is not put in the place of what somebody is about
  // to click.
  const plain = (el) => el.innerHTML.replace(/<time[^>]*>[^<]*<\/time>/g, "");
  let shown = liveArea && plain(liveArea);
  function liveFrom(doc) {
    const next = doc.getElementById("live");
    const area = $("live");
    if (!next || !area) return;
    clearTimeout(late);
    if (plain(next) === shown) return;
    if (reading() || (area.contains(document.activeElement) && typing(document.activeElement))) { late = setTimeout(refresh, 2000); return; }
    const marked = new Set([...area.querySelectorAll("input[type=checkbox]:checked")].map((c) => c.value));
    const opened = new Set([...area.querySelectorAll("details[open]")].map((d) => d.id));
    const had = new Set([...area.querySelectorAll("[data-key]")].map((e) => e.dataset.key));
    const at = document.activeElement;
    const key = at && area.contains(at) ? (at.id ? "#" + CSS.escape(at.id) : at.tagName === "A" ? 'a[href="' + CSS.escape(at.getAttribute("href")) + '"]' : at.value ? 'input[value="' + CSS.escape(at.value) + '"]' : null) : null;
    shown = plain(next);
    area.replaceWith(document.adoptNode(next));
    loaded = performance.now();
    for (const c of next.querySelectorAll("input[type=checkbox]")) c.checked = marked.has(c.value);
    for (const d of next.querySelectorAll("details")) if (opened.has(d.id)) d.open = true;
    if (had.size) for (const e of next.querySelectorAll("[data-key]")) if (!had.has(e.dataset.key)) e.classList.add("fresh");
    if (key) next.querySelector(key)?.focus({ preventScroll: true });
  }

  function cardFrom(doc) {
    const next = doc.getElementById("card");
    const now = $("card");
    if (!next) return;
    const was = now.dataset, is = next.dataset;
    if (is.decided !== was.decided || (is.decided && !busyForm())) {
      if (is.decided && is.decided === was.decided && next.querySelector("#side")?.innerHTML === now.querySelector("#side")?.innerHTML && is.state === was.state) return status(next, now);
      // Decided elsewhere, or taken back: there is nothing left here to act on.
      if (is.decided && !was.decided) $("said").textContent = "This was decided elsewhere";
      now.replaceWith(document.adoptNode(next));
      loaded = performance.now();
      look();
      return;
    }
    if (is.base !== was.base || is.state !== was.state) {
      $("moved").hidden = false;
      return;
    }
    status(next, now);
  }
  function status(next, now) {
    const a = next.querySelector("#status"), b = now.querySelector("#status");
    if (!a || !b || b.contains(document.activeElement) || reading()) return;
    b.replaceWith(document.adoptNode(a));
    loaded = performance.now();
  }
  const busyForm = () => document.querySelector("form[data-sent]") !== null;

  // --- the stream -------------------------------------------------------------------------------------------
  const offline = $("offline");
  let rev = document.body.dataset.rev || null, down = 0;
  function take(u) {
    clearTimeout(down);
    offline.hidden = true;
    count(u.open);
    if (u.rev !== rev) { rev = u.rev; refresh(); }
  }
  function lost() {
    clearTimeout(down);
    down = setTimeout(() => { offline.textContent = "The desk does not answer. What you see may be old."; offline.hidden = false; }, 3000);
  }
  function signedOut() {
    clearTimeout(down);
    offline.replaceChildren("You are signed out. ", Object.assign(document.createElement("a"), { href: "/in", textContent: "Sign in" }));
    offline.hidden = false;
  }
  function listen(tell) {
    const source = new EventSource("/events");
    source.addEventListener("board", (e) => tell(JSON.parse(e.data)));
    source.onerror = async () => {
      tell("lost");
      if (source.readyState !== EventSource.CLOSED) return; // it tries again by itself
      let status = 0;
      try { status = (await fetch("/events", { method: "HEAD" })).status; } catch { /* gone */ }
      if (status === 401) return tell("out");
      setTimeout(() => { refresh(); listen(tell); }, 5000);
    };
  }
  const hear = (m) => m === "lost" ? lost() : m === "out" ? signedOut() : take(m);
  // A browser has six connections for a host, so one page listens for all of them, where it can.
  if (navigator.locks && "BroadcastChannel" in window) {
    const channel = new BroadcastChannel("supervise-board");
    let latest = null; // only where the stream is
    channel.onmessage = (e) => {
      if (e.data !== "hello") hear(e.data);
      else if (latest) channel.postMessage(latest);
    };
    navigator.locks.request("supervise-stream", () => new Promise(() => {
      listen((m) => {
        latest = m;
        channel.postMessage(m);
        if (m.newest) announce(m.newest);
        hear(m);
      });
    }));
    channel.postMessage("hello");
  } else {
    listen((m) => { if (m.newest) announce(m.newest); hear(m); });
  }

  // --- changed lines that have not been on the screen ----------------------------------------------------------
  const unseen = new Set();
  let eye = null;
  function look() {
    eye?.disconnect();
    unseen.clear();
    if (!$("unseen") || !("IntersectionObserver" in window)) return;
    eye = new IntersectionObserver((all) => {
      for (const e of all) if (e.isIntersecting) { unseen.delete(e.target); eye.unobserve(e.target); }
      if (!$("unseen").hidden) ask();
    });
    for (const l of document.querySelectorAll("main .block:not(.same) .l")) { unseen.add(l); eye.observe(l); }
    $("unseen-show").addEventListener("click", () => [...unseen][0]?.scrollIntoView({ block: "center" }));
  }
  function ask() { // before approving what nobody has looked at, as the terminal does
    for (const l of unseen) { // what came to be there after the last frame
      const r = l.getBoundingClientRect();
      if (r.bottom > 0 && r.top < innerHeight) unseen.delete(l);
    }
    const n = unseen.size, box = $("unseen");
    $("unseen-text").textContent = n === 1 ? "One changed line has not been on the screen." : n + " changed lines have not been on the screen.";
    box.hidden = n === 0;
    return n > 0;
  }
  look();

  // --- forms ------------------------------------------------------------------------------------------------
  document.addEventListener("submit", (e) => {
    const f = e.target, b = e.submitter;
    if (f.method !== "post") return;
    if (f.dataset.sent) { e.preventDefault(); return; }
    if (b && b.id === "approve" && $("unseen") && ask()) {
      e.preventDefault();
      $("unseen").scrollIntoView({ block: "center" });
      $("unseen-show").focus({ preventScroll: true });
      return;
    }
    f.dataset.sent = "1";
    setTimeout(() => { // after the form has been read
      for (const x of f.querySelectorAll("button")) x.disabled = true;
      if (b && b.dataset.busy) b.textContent = b.dataset.busy;
    });
  });
  addEventListener("pageshow", (e) => { if (e.persisted) location.reload(); });
  document.addEventListener("change", (e) => { if (e.target.matches(".filter select, .filter input[type=date]")) e.target.form.requestSubmit(); });
  document.addEventListener("click", (e) => { const m = document.querySelector(".menu[open]"); if (m && !m.contains(e.target)) m.open = false; });

  // --- keys: they move, they do not decide --------------------------------------------------------------------
  const keys = $("keys");
  $("keysbox").hidden = false;
  keys.checked = store.get("keys") !== "0";
  keys.addEventListener("change", () => store.set("keys", keys.checked ? "1" : "0"));
  function step(by) {
    const links = [...document.querySelectorAll(".row .what")];
    if (!links.length) { const a = $(by > 0 ? "next" : "prev") || (by > 0 ? $("onward") : null); if (a) location.assign(a.href); return; }
    const row = document.activeElement?.closest?.(".row");
    const at = row ? links.findIndex((l) => row.contains(l)) : -1;
    links[Math.max(0, Math.min(links.length - 1, at < 0 ? 0 : at + by))].focus();
  }
  const acts = {
    j: () => step(1), k: () => step(-1),
    x: () => document.activeElement?.closest?.(".row")?.querySelector("input")?.click(),
    "/": () => $("q")?.focus(), i: () => location.assign($("back")?.href || "/"), h: () => location.assign("/history"),
    a: () => ($("approve") || $("onward"))?.focus(), e: () => $("edit-link")?.click(), r: () => $("notes")?.focus(),
    "?": () => $("help").showModal(),
  };
  document.addEventListener("keydown", (e) => {
    if (e.key === "Escape") { const m = document.querySelector(".menu[open]"); if (m) m.open = false; }
    if (!keys.checked || e.ctrlKey || e.metaKey || e.altKey || e.target.matches("input:not([type=checkbox]), textarea, select") || $("help").open || !Object.hasOwn(acts, e.key)) return;
    e.preventDefault();
    acts[e.key]();
  });
})();
