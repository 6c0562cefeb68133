// Zooms all charts together and filters tables. The page is whole without it.
(() => {
  'use strict';
  const make = (name, attributes, text) => {
    const element = document.createElement(name);
    for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
    element.textContent = text;
    return element;
  };

  // Times are seconds of a clock that shows the page's zone; places are those of the drawing.
  const charts = [...document.querySelectorAll('svg[data-from]')].map(svg => {
    const number = name => Number(svg.dataset[name]);
    const [left, right, bottom] = [number('left'), number('right'), number('bottom')];
    const time = x => number('from') + (x - left) / (right - left) * (number('to') - number('from'));
    const drawn = shape => !['#010203', '#040506'].includes(shape.getAttribute('stroke'));
    const shapes = [...svg.querySelectorAll('polyline,polygon')].filter(drawn).map(shape => {
      const was = shape.getAttribute('points');
      const points = was.trim().split(/\s+/).map(point => point.split(',').map(Number));
      return { shape, was, points: points.map(([x, y]) => [time(x), y]) };
    });
    const labels = [...svg.querySelectorAll('text')].filter(text => Number(text.getAttribute('y')) > bottom);
    const texts = labels.map(label => ({ label, was: label.textContent, at: Number(label.getAttribute('x')) }));
    return { svg, left, right, from: number('from'), to: number('to'), shapes, texts };
  });
  const whole = {
    from: Math.min(...charts.map(chart => chart.from)),
    to: Math.max(...charts.map(chart => chart.to)),
  };
  let range = whole;

  // What of a line lies in the range, with its ends where the range cuts it.
  const inside = points => points.flatMap(([at, y], index) => {
    const cuts = [];
    if (index > 0) {
      const [before, old] = points[index - 1];
      for (const edge of [range.from, range.to]) {
        if (before < edge && edge < at) cuts.push([edge, old + (y - old) * (edge - before) / (at - before)]);
      }
    }
    return range.from <= at && at <= range.to ? [...cuts, [at, y]] : cuts;
  });

  const label = at => {
    const text = new Date(at * 1000).toISOString();
    const span = range.to - range.from;
    return span < 10 ? text.slice(11, 21) : span < 600 ? text.slice(11, 19) : text.slice(5, 16).replace('T', ' ');
  };

  const draw = () => {
    const all = range === whole;
    for (const { left, right, from, to, shapes, texts } of charts) {
      const scale = (right - left) / (range.to - range.from);
      const place = at => left + (at - range.from) * scale;
      for (const { shape, was, points } of shapes) {
        let moved = points;
        if (shape.tagName === 'polygon') {
          // A mark keeps its form.
          const middle = (Math.min(...points.map(([at]) => at)) + Math.max(...points.map(([at]) => at))) / 2;
          const first = (right - left) / (to - from);
          moved = range.from <= middle && middle <= range.to
            ? points.map(([at, y]) => [place(middle) + (at - middle) * first, y]) : [];
        } else {
          moved = inside(points).map(([at, y]) => [place(at), y]);
        }
        const text = moved.map(([x, y]) => `${x.toFixed(1)},${y.toFixed(1)}`).join(' ');
        shape.setAttribute('points', all ? was : text);
      }
      for (const text of texts) {
        text.label.textContent = all ? text.was : label(range.from + (text.at - left) / scale);
      }
    }
  };

  const least = (whole.to - whole.from) / 500;
  const show = (from, to) => {
    const span = Math.min(Math.max(to - from, least), whole.to - whole.from);
    const start = Math.min(Math.max((from + to - span) / 2, whole.from), whole.to - span);
    // Nearly all is all: halves and doubles are not exact.
    range = span > (whole.to - whole.from) * 0.999 ? whole : { from: start, to: start + span };
    draw();
  };
  const zoom = (by, move) => {
    const [middle, span] = [(range.from + range.to) / 2, range.to - range.from];
    show(middle + span * (move - by / 2), middle + span * (move + by / 2));
  };
  const buttons = [
    ['+', 'Zoom in', () => zoom(0.5, 0)],
    ['−', 'Zoom out', () => zoom(2, 0)],
    ['‹', 'Earlier', () => zoom(1, -0.5)],
    ['›', 'Later', () => zoom(1, 0.5)],
    ['All', 'The whole time', () => show(whole.from, whole.to)],
  ];
  for (const { svg, left, right } of charts) {
    const tools = make('div', { class: 'tools' }, '');
    for (const [text, title, act] of buttons) {
      const button = make('button', { type: 'button', title, 'aria-label': title }, text);
      button.addEventListener('click', act);
      tools.append(button);
    }
    svg.parentElement.before(tools);
    // Or draw over the time to see.
    let began = null;
    const at = event => {
      const box = svg.getBoundingClientRect();
      const x = (event.clientX - box.left) / box.width * svg.viewBox.baseVal.width;
      const share = Math.min(Math.max((x - left) / (right - left), 0), 1);
      return range.from + share * (range.to - range.from);
    };
    svg.addEventListener('pointerdown', event => {
      began = event.pointerType === 'mouse' && event.button === 0 ? at(event) : null;
    });
    svg.addEventListener('pointerup', event => {
      const [from, to] = [began, at(event)].sort((a, b) => a - b);
      if (began !== null && to - from > (range.to - range.from) / 50) show(from, to);
      began = null;
    });
  }

  for (const table of document.querySelectorAll('.scroll table')) {
    const rows = [...table.tBodies[0].rows];
    if (rows.length < 6) continue;
    const title = 'Rows that contain this';
    const input = make('input', { type: 'search', placeholder: 'Filter rows', title, 'aria-label': title }, '');
    input.addEventListener('input', () => {
      const wanted = input.value.toLowerCase();
      for (const row of rows) row.hidden = !row.textContent.toLowerCase().includes(wanted);
    });
    const tools = make('div', { class: 'tools' }, '');
    tools.append(input);
    table.parentElement.before(tools);
  }
})();
