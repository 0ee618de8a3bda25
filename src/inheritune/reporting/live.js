"use strict";
// Checks every two seconds whether the run has changed and updates the page without a reload:
// scroll position, open details and chosen axes stay.
(() => {
  const EVERY_MS = 2000;
  const line = document.getElementById("live");
  let tag = `"${line.dataset.tag}-live"`; // of the version that the page was opened with

  function say(text, lost) {
    if (line.textContent !== text) line.textContent = text;
    line.classList.toggle("lost", lost);
  }

  async function replace(change) {
    const main = document.querySelector("main");
    main.style.minHeight = `${main.offsetHeight}px`; // nothing moves while charts are drawn
    const open = [...main.querySelectorAll("details[open][id]")].map((one) => one.id);
    const top = window.scrollY;
    const focus = document.activeElement?.id;
    main.innerHTML = change.main; // escaped when it was made; the policy lets no script in it run
    for (const id of open) document.getElementById(id)?.setAttribute("open", "");
    document.title = change.title;
    window.scrollTo(0, top);
    if (focus) document.getElementById(focus)?.focus({ preventScroll: true });
    await window.inheritune.report.show(change.charts);
    main.style.minHeight = "";
    window.scrollTo(0, top);
  }

  async function ask() {
    try {
      const answer = await fetch("live", {
        cache: "no-store",
        headers: { "If-None-Match": tag },
      });
      if (answer.status === 200) {
        await replace(await answer.json());
        tag = answer.headers.get("ETag");
      } else if (answer.status !== 304) {
        throw new Error(String(answer.status));
      }
      say(`live: this page follows the run, last checked at ${new Date().toLocaleTimeString()}`, false);
    } catch (error) {
      say("not live: `inheritune watch` has ended or does not answer; this page shows the last state it got", true);
    }
    setTimeout(ask, EVERY_MS);
  }

  setTimeout(ask, EVERY_MS);
})();
