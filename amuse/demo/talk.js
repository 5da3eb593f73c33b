// Connects the timeline and the utterances with the player. `element`, `trigger` are Gradio's; the HTML inside changes.
const player = () => document.querySelector('#player video');
const rows = () => [...element.querySelectorAll('.utterance')];
const quoted = text => `"${text.replace(/\s+/g, ' ').trim().replaceAll('"', '""')}"`;
const csv = () => ['start,end,speaker,text,label', ...rows().map(row => [
  row.dataset.start, row.dataset.end, quoted(row.querySelector('.speaker').textContent),
  quoted(row.querySelector('.words').textContent), quoted(row.querySelector('.label').value)].join(','))].join('\n') + '\n';

element.addEventListener('click', event => {
  const jump = event.target.closest('[data-jump]'), why = event.target.closest('[data-explain]');
  if (jump && player()) {
    player().currentTime = Number(rows()[jump.dataset.jump - 1].dataset.start);
    player().play();
  } else if (why) {
    trigger('select', {position: why.dataset.explain - 1});
  } else if (event.target.closest('.again')) {
    trigger('submit', {csv: csv()});
  } else if (event.target.closest('.save')) {
    const link = document.createElement('a');
    link.href = URL.createObjectURL(new Blob([csv()], {type: 'text/csv'}));
    link.download = 'conversation.csv';
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 1000);
  }
});

element.addEventListener('input', event => {
  event.target.classList.add('corrected');
  element.querySelector('.again').disabled = false;
});

// Enter ends a correction, as in a table
element.addEventListener('keydown', event => {
  if (event.key === 'Enter' && event.target.classList.contains('field')) {
    event.preventDefault();
    event.target.blur();
  }
});

// Media and load events do not bubble, but they are captured.
document.addEventListener('timeupdate', event => {
  const talk = element.querySelector('.talk'), now = element.querySelector('.now');
  if (event.target !== player() || !talk) return;
  const time = event.target.currentTime;
  now.hidden = false;
  now.style.left = `${Math.min(100 * time / talk.dataset.end, 100)}%`;
  for (const row of rows()) {
    const lit = Number(row.dataset.start) <= time && time < Number(row.dataset.end);
    row.classList.toggle('lit', lit);
    element.querySelector(`.mark[data-jump="${row.dataset.number}"]`).classList.toggle('lit', lit);
  }
}, true);

document.addEventListener('load', event => {
  const frame = event.target;
  if (!frame.matches?.('.explanation iframe') || !frame.contentDocument) return;
  const body = frame.contentDocument.body;
  const fit = () => { frame.style.height = `${Math.ceil(body.getBoundingClientRect().height) + 4}px`; };
  new ResizeObserver(fit).observe(body);
  frame.scrollIntoView({block: 'start', behavior: 'smooth'});
}, true);
