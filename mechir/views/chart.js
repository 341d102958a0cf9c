const spec = JSON.parse(document.getElementById("spec").textContent);
const refuse = () => Promise.reject(new Error("a chart asks for nothing"));
const loader = { load: refuse, sanitize: refuse, http: refuse, file: refuse };
vegaEmbed("#chart", spec, { mode: "vega-lite", ast: true, loader });
