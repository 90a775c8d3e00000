// Tries what a script that found its way into the page would try; returns what came of it.
async () => {
  const told = [];
  document.addEventListener("securitypolicyviolation", (event) => told.push(event.effectiveDirective));
  const attempt = (what) => {
    try {
      what();
      return "done";
    } catch (error) {
      return error.name;
    }
  };
  const inner = attempt(() => {
    document.body.innerHTML = "<b>x</b>";
  });
  const script = attempt(() => {
    const one = document.createElement("script");
    one.textContent = "window.ran = 1";
    document.body.append(one);
  });
  const elsewhere = await fetch("http://127.0.0.1:9/").then(
    () => "done",
    (error) => error.name,
  );
  const image = new Image();
  await new Promise((resolve) => {
    image.onerror = resolve;
    image.onload = resolve;
    image.src = "http://127.0.0.1:9/x.png";
  });
  return { inner, script, elsewhere, ran: window.ran ?? null, told };
}
