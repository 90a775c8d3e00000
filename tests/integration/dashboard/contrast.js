// Returns the text with the least contrast with what is behind it, and that contrast.
() => {
  const canvas = document.createElement('canvas').getContext('2d', { willReadFrequently: true });
  const rgb = (colour, under) => {
    canvas.fillStyle = under; canvas.fillRect(0, 0, 1, 1);
    canvas.fillStyle = colour; canvas.fillRect(0, 0, 1, 1);
    return [...canvas.getImageData(0, 0, 1, 1).data].slice(0, 3);
  };
  const light = (parts) => {
    const [r, g, b] = parts.map((part) => part / 255).map((x) => (x <= 0.04045 ? x / 12.92 : ((x + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const behind = (element) => {
    for (let at = element; at; at = at.parentElement) {
      const colour = getComputedStyle(at).backgroundColor;
      if (!/, 0\)$/.test(colour)) return colour;
    }
    return 'white';
  };
  const words = [...document.querySelectorAll('body *')].filter((element) =>
    element.checkVisibility() && [...element.childNodes].some((node) => node.nodeType === 3 && node.textContent.trim()));
  return words.map((element) => {
    const style = getComputedStyle(element);
    const under = behind(element);
    const ink = element instanceof SVGElement ? style.fill : style.color;
    const [one, two] = [light(rgb(ink, under)), light(rgb(under, 'white'))].sort((a, b) => b - a);
    return [(one + 0.05) / (two + 0.05), `${element.className}: ${element.textContent.slice(0, 40)}`];
  }).sort(([one], [two]) => one - two)[0];
}
