"use strict";
(() => {
  const ink = () => getComputedStyle(document.documentElement).getPropertyValue("--ink").trim();

  // The default bar has a button that uploads the figure's data to a cloud; this page gives nothing away.
  const config = {
    responsive: true,
    displaylogo: false,
    showSendToCloud: false,
    plotlyServerURL: "",
    modeBarButtons: [["toImage", "zoom2d", "pan2d", "resetScale2d"]],
  };

  // Plotly comes packed; the page's policy lets what is unpacked run by its digest.
  const unpack = async (packed) => {
    const bytes = Uint8Array.from(atob(packed.textContent), (character) => character.charCodeAt(0));
    const unpacked = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
    const script = document.createElement("script");
    script.textContent = await new Response(unpacked).text();
    document.head.append(script);
  };

  // A figure is drawn when it is first seen: one in a hidden panel has no width yet.
  const draw = () => {
    if (!window.Plotly) return;
    for (const box of document.querySelectorAll("figure > .plot:not([data-drawn])")) {
      if (box.closest("[hidden]")) continue;
      box.dataset.drawn = "";
      const { data, layout } = JSON.parse(box.nextElementSibling.textContent);
      layout.font = { ...layout.font, color: ink() };
      layout.modebar = { bgcolor: "rgba(0,0,0,0)", color: "#888", activecolor: ink() };
      if (layout.height) box.style.minHeight = `${layout.height}px`;
      Plotly.newPlot(box, data, layout, config);
    }
  };

  for (const select of document.querySelectorAll("select[data-panels]")) {
    const panels = document.getElementById(select.dataset.panels).children;
    const choose = () => {
      [...panels].forEach((panel, i) => { panel.hidden = String(i) !== select.value; });
      draw();
    };
    select.addEventListener("change", choose);
    choose(); // a browser that goes back to this page remembers the choice
  }

  for (const input of document.querySelectorAll("input[data-filters]")) {
    const all = [...document.getElementById(input.dataset.filters).children];
    const count = input.parentElement.parentElement.querySelector("[aria-live]");
    const filter = () => {
      const wanted = input.value.trim().toLowerCase();
      for (const one of all) one.hidden = !one.textContent.toLowerCase().includes(wanted);
      count.textContent = wanted ? `${all.filter((one) => !one.hidden).length} of ${all.length}` : "";
    };
    input.addEventListener("input", filter);
    filter();
  }

  const plotly = document.getElementById("plotly");
  if (plotly) {
    unpack(plotly).then(draw).catch((error) => {
      const said = document.createElement("p");
      said.className = "warning";
      said.textContent = `The figures could not be drawn (${error}); they are in the folder figures/ beside this page.`;
      document.querySelector("header").append(said);
    });
  }
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
    for (const box of document.querySelectorAll(".plot[data-drawn]")) {
      Plotly.relayout(box, { "font.color": ink(), "modebar.activecolor": ink() });
    }
  });
})();
