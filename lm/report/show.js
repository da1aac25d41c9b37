'use strict';
// Highlights the tokens that a token sees, and those that see it. Both are read
// from the drawn cells: M<first key> <query>h<keys>...
for (const panel of document.querySelectorAll('.panel')) {
  const stacks = {};
  for (const box of panel.querySelectorAll('[data-stack]')) {
    stacks[box.dataset.stack] = [...box.querySelectorAll('[data-i]')];
  }
  const masks = [...panel.querySelectorAll('svg.mask')].map((svg) => ({
    svg,
    query: svg.dataset.query,
    key: svg.dataset.key,
    runs: [...svg.querySelectorAll('.cells')].flatMap((cells) =>
      [...cells.getAttribute('d').matchAll(/M(\d+) (\d+)h(\d+)/g)].map(
        ([, start, row, length]) => ({
          row: +row,
          start: +start,
          stop: +start + +length,
        }))),
  }));
  const status = panel.querySelector('.status');
  const hint = status.textContent;
  let here = null;

  function clear() {
    for (const one of panel.querySelectorAll('.here, .sees, .seen')) {
      one.classList.remove('here', 'sees', 'seen');
    }
    for (const band of panel.querySelectorAll('.band')) {
      band.setAttribute('visibility', 'hidden');
    }
    status.textContent = hint;
    here = null;
  }

  function band(mask, kind, attribute, place) {
    const rect = mask.svg.querySelector(`.band.${kind}`);
    rect.setAttribute(attribute, place);
    rect.setAttribute('visibility', 'visible');
  }

  function point(stack, i) {
    clear();
    here = { stack, i };
    const token = stacks[stack][i];
    token.classList.add('here');
    let sees = 0;
    let seen = 0;
    for (const mask of masks) {
      if (mask.query === stack) {
        band(mask, 'query', 'y', i);
        for (const run of mask.runs.filter((one) => one.row === i)) {
          for (let j = run.start; j < run.stop; j++) {
            stacks[mask.key][j].classList.add('sees');
            sees += 1;
          }
        }
      }
      if (mask.key === stack) {
        band(mask, 'key', 'x', i);
        for (const run of mask.runs) {
          if (run.start <= i && i < run.stop) {
            stacks[mask.query][run.row].classList.add('seen');
            seen += 1;
          }
        }
      }
    }
    status.textContent =
      `${stack} ${i}  ${token.dataset.text}: sees ${sees}, seen by ${seen}` +
      (token.dataset.predicts ? `; predicts ${token.dataset.predicts}` : '');
  }

  panel.addEventListener('pointerover', (event) => {
    const token = event.target.closest('[data-i]');
    if (token) {
      point(token.closest('[data-stack]').dataset.stack, +token.dataset.i);
    } else if (!event.target.closest('svg.mask')) {
      clear();
    }
  });
  panel.addEventListener('pointerleave', clear);
  for (const mask of masks) {
    const cells = mask.svg.querySelector('.cells');
    mask.svg.addEventListener('pointermove', (event) => {
      const place = new DOMPoint(event.clientX, event.clientY)
        .matrixTransform(cells.getScreenCTM().inverse());
      const row = Math.floor(place.y);
      if (row >= 0 && row < stacks[mask.query].length) {
        point(mask.query, row);
      }
    });
  }
  for (const box of panel.querySelectorAll('[data-stack]')) {
    box.addEventListener('keydown', (event) => {
      const move = { ArrowUp: -1, ArrowLeft: -1, ArrowDown: 1, ArrowRight: 1 };
      if (!(event.key in move)) return;
      event.preventDefault();
      const stack = box.dataset.stack;
      const from = here && here.stack === stack ? here.i + move[event.key] : 0;
      point(stack, Math.max(0, Math.min(from, stacks[stack].length - 1)));
      stacks[stack][here.i].scrollIntoView({ block: 'nearest' });
    });
  }
}
