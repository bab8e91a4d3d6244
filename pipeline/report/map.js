// Colours the map by what the reader chooses. Without it the map is coloured by label.
(() => {
  const figure = document.getElementById("map-figure");
  const data = JSON.parse(document.getElementById("map-data").textContent);
  const choice = figure.querySelector("select");
  const legend = figure.querySelector(".legend");
  const drawings = [...figure.querySelectorAll("svg.map")];
  const svg = drawings[0].namespaceURI;
  const points = data.layouts.map((layout) => layout.points.split(" "));

  const point = (number, path) => {
    const element = document.createElementNS(svg, "path");
    element.setAttribute("class", `point point-${number}`);
    element.setAttribute("d", path);
    return element;
  };

  const show = () => {
    const colouring = data.colourings[Number(choice.value)];
    drawings.forEach((drawing, i) => {
      const paths = colouring.values.map(() => "");
      points[i].forEach((point, j) => { paths[Number(colouring.of[j])] += `M${point}h0`; });
      drawing.replaceChildren(...paths.map((path, number) => point(number, path)));
      drawing.setAttribute("aria-label", `${data.layouts[i].message}; coloured by ${colouring.name}.`);
    });
    legend.replaceChildren(...colouring.values.map((value, number) => {
      const [item, swatch, text] = [document.createElement("li"), document.createElementNS(svg, "svg"), document.createElement("span")];
      swatch.setAttribute("viewBox", "0 0 28 10");
      swatch.setAttribute("aria-hidden", "true");
      swatch.append(point(number, "M14,5h0"));
      text.textContent = `${value}: ${colouring.counts[number].toLocaleString("en")}`;
      item.append(swatch, text);
      return item;
    }));
  };

  choice.addEventListener("change", show);
  figure.querySelector(".choice").hidden = false;
  show();
})();
