// What status and flows show, asked for again every two seconds. What pods wrote is set as text only, never as markup.
"use strict";
(() => {
  const EVERY = 2000, PATIENCE = 5000;
  const $ = (id) => document.getElementById(id);
  const make = (tag, text, name) => {
    const node = document.createElement(tag);
    if (text !== undefined && text !== null) node.textContent = text;
    if (name) node.className = name;
    return node;
  };
  const cell = (text, name) => make("td", text ?? "", name);
  const fill = (table, rows, none) => {
    const body = (typeof table === "string" ? $(table) : table).tBodies[0];
    const width = body.parentNode.tHead.rows[0].cells.length;
    const lines = rows.map((cells) => { const row = make("tr"); row.append(...cells); return row; });
    if (!lines.length) { const row = make("tr"), only = cell(none, "none"); only.colSpan = width; row.append(only); lines.push(row); }
    body.replaceChildren(...lines);
  };
  const time = (text) => (text ? text.replace("T", " ").replace(/(\.\d+)?Z$/, "") : "");
  const span = (s) => {
    if (s === null || s === undefined) return "";
    const past = s < 0 ? "over since " : ""; s = Math.abs(Math.round(s));
    const d = Math.floor(s / 86400), h = Math.floor(s / 3600) % 24, m = Math.floor(s / 60) % 60;
    return past + (d ? `${d} d ${h} h` : h ? `${h} h ${m} min` : m ? `${m} min ${s % 60} s` : `${s} s`);
  };
  const judged = { ok: "good", unused: "dim", failing: "bad", expired: "bad", missing: "bad" };
  const state = (word) => cell(word, judged[word] ?? "");
  const list = (values) => (values ?? []).join(", ");
  const pod = (row) => (row.pod ? `${row.namespace ?? "?"}/${row.pod}` : row.pod_uid ?? row.cgroup ?? row.client ?? "");
  const words = (reason, detail) => (detail ? `${reason}: ${detail}` : reason);
  const request = (row) => (row.method ? `${row.method} ${row.path ?? ""}` : row.mode ?? "");

  const certificate = (kind) => (one) => {
    const bar = cell("");
    if (one.dates) {
      const over = make("progress");
      over.max = 1; over.value = Math.min(1, one.dates.lifetime_over);
      over.title = `${time(one.dates.not_before)} to ${time(one.dates.not_after)}`;
      bar.append(over);
    }
    const left = one.dates?.seconds_left, over = one.dates?.lifetime_over ?? 0;
    const subject = one.subject ?? one.first_to_end ?? (one.roots !== undefined && one.roots !== null ? `${one.roots} roots` : "");
    return [cell(`${kind} ${one.name}`), state(one.state), cell(subject, "long"), cell(one.source, "long"), bar,
      cell(span(left), over >= 0.9 ? "bad" : over >= 0.75 ? "warn" : ""), cell(one.error, "long bad")];
  };

  const showStatus = (s) => {
    $("version").textContent = s.version;
    $("state").textContent = s.ready ? "ready" : "not ready";
    $("state").className = `badge ${s.ready ? "good" : "bad"}`;
    $("facts").textContent = `pid ${s.pid}, up ${span(s.uptime_s)}, ${s.connections_open} of ${s.connections_limit} connections, `
      + `${s.workers} workers, configuration ${s.configuration.generation}`;
    document.title = `${s.ready ? "" : "(!) "}hnp-agent`;
    const pending = [...s.pending];
    if (s.configuration.error) pending.push({ name: "configuration", why: s.configuration.error });
    if (s.configuration.keys_waiting_for_restart) pending.push({ name: "configuration", why: `${s.configuration.keys_waiting_for_restart} keys wait for a restart` });
    $("pending").hidden = !pending.length;
    fill($("pending").querySelector("table"), pending.map((one) => [cell(one.name), cell(one.why, "long")]), "");
    fill("routes", s.routes.map((r) => [cell(r.name), cell(r.proxy ? `${r.upstream} through ${r.proxy}` : r.upstream), state(r.health.state),
      cell(r.overrides.length ? `${r.enforcement}; ${list(r.overrides)}` : r.enforcement), cell(r.mode), cell(list(r.destinations)),
      cell(r.health.idle, "n"), cell(r.health.shared, "n"),
      cell(r.health.last_failure ? `${time(r.health.last_failure)} ${words(r.health.last_failure_reason, r.health.last_failure_detail)}` : "",
        r.health.state === "failing" ? "long bad" : "long dim")]), "no routes");
    fill("certificates", [...s.identities.map(certificate("identity")), ...s.trusts.map(certificate("trust"))], "none");
    const c = s.capture;
    $("capture").textContent = c
      ? `${c.cgroup}; ${c.hooks.filter((h) => h.attached).length} of ${c.hooks.length} programs attached; heartbeat ${c.heartbeat_age_ms ?? "none yet"} `
        + `of ${c.heartbeat_limit_ms} ms; ${c.connections_open ?? "?"} captured connections`
        + (c.guard ? `; guard ${c.guard.way ?? "not needed"}, ${c.guard.interfaces} interfaces, ${c.guard.failing} failing` : "")
      : `capture: ${s.capture_mode}`;
    $("capture").className = c && c.hooks.some((h) => !h.attached) ? "bad" : "";
    fill("destinations", (c?.destinations ?? []).map((d) => [cell(d.at, "mono"), cell(d.vip, "mono"), cell(d.enforcement), cell(list(d.routes))]), "nothing is captured");
    $("names-section").hidden = !s.names.length;
    fill("names", s.names.map((n) => [cell(n.name), cell(list(n.addresses), "mono"), cell(n.error, "long bad")]), "");
    fill("reasons", s.reasons.map((r) => [cell(r.reason, r.reason === "ok" ? "" : "warn"), cell(r.count, "n")]), "nothing has ended yet");
    const routes = document.forms.filter.route, names = s.routes.map((r) => r.name);
    if (list(names) !== routes.dataset.names) {
      const chosen = routes.value;
      routes.replaceChildren(make("option", "all"), ...names.map((name) => make("option", name)));
      routes.options[0].value = "";
      routes.value = names.includes(chosen) ? chosen : "";
      routes.dataset.names = list(names);
    }
  };

  const showFlows = (f) => {
    $("live-count").textContent = `${f.live.length} of ${f.live_matching}`;
    $("recent-count").textContent = `${f.recent.length} of ${f.recent_matching}`;
    fill("live", f.live.map((r) => [cell(time(r.since)), cell(pod(r)), cell(r.route), cell(request(r), "long"), cell(r.destination ?? r.asked, "mono"), cell(r.upstream_addr ?? r.upstream, "mono")]), "nobody");
    fill("recent", f.recent.map((r) => [cell(time(r.ts)), cell(pod(r)), cell(r.route), cell(request(r), "long"), cell(r.status, "n"),
      cell(words(r.reason, r.detail), r.reason === "ok" ? "" : "long bad"), cell(r.duration_ms === undefined ? "" : Number(r.duration_ms).toFixed(1), "n"), cell(r.upstream_addr ?? r.upstream, "mono")]), "nothing yet");
  };

  const ask = async (path) => {
    const answer = await fetch(path, { cache: "no-store", signal: AbortSignal.timeout(PATIENCE) });
    const text = await answer.text();
    if (!answer.ok) throw Object.assign(new Error(text.trim() || answer.statusText), { status: answer.status });
    return JSON.parse(text);
  };
  const query = () => {
    const wanted = new URLSearchParams({ limit: "50" });
    for (const name of ["pod", "route", "reason"]) { const value = document.forms.filter[name].value.trim(); if (value) wanted.set(name, value); }
    return wanted.toString().replaceAll("+", "%20");
  };
  let paused = false, timer, turn = 0;
  const look = async () => {
    clearTimeout(timer);
    const mine = ++turn;
    try {
      const status = await ask("status");
      if (mine !== turn) return;
      showStatus(status);
      $("asof").textContent = `as of ${time(status.now)} UTC`;
      $("lost").hidden = true;
      try { const flows = await ask(`flows?${query()}`); if (mine !== turn) return; showFlows(flows); $("refused").hidden = true; }
      catch (error) { if (error.status !== 400) throw error; $("refused").textContent = error.message; $("refused").hidden = false; }
    } catch (error) {
      if (mine !== turn) return;
      $("lost").textContent = `The agent does not answer (${error.message}). What is below is old.`;
      $("lost").hidden = false;
      $("state").textContent = "unknown"; $("state").className = "badge warn";
    }
    if (!paused) timer = setTimeout(look, EVERY);
  };
  $("pause").addEventListener("click", () => { paused = !paused; $("pause").textContent = paused ? "Go on" : "Pause"; if (paused) clearTimeout(timer); else look(); });
  document.forms.filter.addEventListener("input", look);
  document.forms.filter.addEventListener("submit", (event) => { event.preventDefault(); look(); });
  look();
})();
