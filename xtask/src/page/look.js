// Runs in the opened page, with the width of the window and whether the page's script ran; gives what is wrong with it.
((width, scripted) => {
  const wrong = [];
  const wide = Math.max(document.documentElement.scrollWidth, document.body.scrollWidth);
  if (wide > width) {
    const beyond = [...document.body.querySelectorAll('*')].filter(
      element => element.getBoundingClientRect().right > width && !element.parentElement.closest('.scroll')
    );
    const last = beyond.at(-1)?.outerHTML.slice(0, 200);
    wrong.push(`the page is ${wide} px wide, the window ${width}: ${last}`);
  }

  const channels = color => (color.match(/[\d.]+/g) || []).map(Number);
  const luminance = color => {
    const [r, g, b] = channels(color).map(c => (c /= 255) <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const behind = element => {
    for (let at = element; at; at = at.parentElement) {
      const color = getComputedStyle(at).backgroundColor;
      if (channels(color).length === 3) return color;
    }
    return 'rgb(255, 255, 255)';
  };
  const ratio = (one, other) => {
    const [low, high] = [luminance(one), luminance(other)].sort((a, b) => a - b);
    return (high + 0.05) / (low + 0.05);
  };
  const dark = matchMedia('(prefers-color-scheme: dark)').matches;
  if (dark !== luminance(behind(document.body)) < 0.2) wrong.push('the background is not that of the colour scheme');
  // WCAG 2, level AA: 4.5 for text, and what is no text must at least be seen.
  const readable = (element, color, least, what) => {
    const seen = ratio(color, behind(element));
    if (!(seen >= least)) wrong.push(`contrast of ${what} is ${seen.toFixed(1)}, less than ${least}`);
  };
  for (const element of document.querySelectorAll('h1,h2,h3,p,li,th,td,pre,.key,.tools *')) {
    readable(element, getComputedStyle(element).color, 4.5, `"${element.textContent.slice(0, 40)}"`);
  }

  const figures = [...document.querySelectorAll('figure')];
  if (figures.length < 3) wrong.push(`${figures.length} charts`);
  figures.forEach((figure, number) => {
    const svg = figure.querySelector('svg');
    const name = `chart ${number + 1}`;
    if (!svg) return wrong.push(`${name} is missing`);
    const box = svg.getBoundingClientRect();
    if (box.width < width / 4 || box.height < 100) wrong.push(`${name} is ${box.width} by ${box.height} px`);
    const keys = [...figure.querySelectorAll('.key i')];
    if (keys.length === 0) wrong.push(`${name} has no legend`);
    for (const key of keys) {
      const mark = key.classList.contains('mark');
      const color = getComputedStyle(key)[mark ? 'borderBottomColor' : 'backgroundColor'];
      const drawn = [...svg.querySelectorAll(mark ? 'polygon' : 'polyline')].filter(
        shape => getComputedStyle(shape)[mark ? 'fill' : 'stroke'] === color
      );
      const extent = Math.max(0, ...drawn.map(shape => shape.getBoundingClientRect().width));
      // A line goes through the whole chart; flow types come and go with a rate of 0.
      if (extent < (mark ? 3 : box.width / 2)) wrong.push(`${name}: "${key.parentElement.textContent}" is not drawn`);
      else readable(svg, color, 2, `a line of ${name}`);
    }
    const labels = [...svg.querySelectorAll('text')].map(text => [text, text.getBoundingClientRect()]);
    if (labels.length < 4) wrong.push(`${name} has ${labels.length} labels`);
    labels.forEach(([text, at], number) => {
      const said = text.textContent.trim();
      readable(text, getComputedStyle(text).fill, 4.5, `"${said}" in ${name}`);
      if (at.height < 8) wrong.push(`${name}: "${said}" is ${at.height} px high`);
      const outside = at.left < box.left || at.right > box.right || at.top < box.top - 1 || at.bottom > box.bottom + 1;
      if (outside) wrong.push(`${name}: "${said}" is cut off`);
      for (const [other, there] of labels.slice(number + 1)) {
        const apart = at.right <= there.left || there.right <= at.left || at.bottom <= there.top || there.bottom <= at.top;
        if (!apart) wrong.push(`${name}: "${said}" covers "${other.textContent.trim()}"`);
      }
    });
    if (!figure.querySelector('tbody td')) wrong.push(`${name} has no numbers`);
  });

  if (!scripted) {
    if (document.querySelector('.tools')) wrong.push('there are tools without the script');
    return wrong;
  }
  const shapes = () => [...document.querySelectorAll('polyline,polygon')].map(shape => shape.getAttribute('points')).join(';');
  const labels = () => [...document.querySelectorAll('svg text')].map(text => text.textContent).join(';');
  const state = () => shapes() + labels();
  const [lines, times] = [shapes(), labels()];
  const before = state();
  for (const figure of figures) {
    const press = title => figure.querySelector(`[title="${title}"]`)?.click();
    press('Zoom in');
    const near = state();
    if (shapes() === lines || labels() === times) wrong.push('zooming in changes nothing');
    press('Later');
    if (state() === near) wrong.push('going on in time changes nothing');
    for (const svg of document.querySelectorAll('svg')) {
      const [left, right] = [Number(svg.dataset.left) - 8, Number(svg.dataset.right) + 8];
      const drawn = [...svg.querySelectorAll('polyline,polygon')].flatMap(shape => [...shape.points]);
      if (drawn.some(point => !(left <= point.x && point.x <= right))) wrong.push('a zoomed line leaves its chart');
    }
    press('Earlier');
    press('Zoom out');
    if (state() !== before) wrong.push('zooming out does not undo it');
    press('Zoom in');
    press('The whole time');
    if (state() !== before) wrong.push('the whole time is not shown again');
  }
  const filters = [...document.querySelectorAll('input')];
  if (filters.length === 0) wrong.push('there is no filter');
  for (const input of filters) {
    const rows = [...input.parentElement.nextElementSibling.querySelectorAll('tbody tr')];
    const wanted = rows.at(-1).cells[0].textContent;
    for (const text of [wanted.toUpperCase(), 'in no row of any table', '']) {
      input.value = text;
      input.dispatchEvent(new Event('input'));
      const right = rows.filter(row => row.textContent.toLowerCase().includes(text.toLowerCase())).length;
      const shown = rows.filter(row => row.getBoundingClientRect().height > 0).length;
      if (shown !== right) wrong.push(`a filter shows ${shown} rows, and ${right} have "${text}"`);
    }
  }
  return wrong;
})
