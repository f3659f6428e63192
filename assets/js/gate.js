// The notice that is accepted once per browser session.

function showGate() {
  const key = 'lightbox.notice';
  try {
    if (window.sessionStorage.getItem(key) === 'accepted') return;
  } catch (error) {
    // Without storage the notice shows each time.
  }
  const accept = button(LB.text.accept, { class: 'lb-primary', id: 'lb-accept' });
  const dialog = el('div', {
    class: 'lb-gate', role: 'dialog', 'aria-modal': 'true', 'aria-labelledby': 'lb-gate-title',
    'aria-describedby': 'lb-gate-text',
  }, el('div', { class: 'lb-gate-box' },
    el('h2', { id: 'lb-gate-title', text: 'Before you start' }),
    el('p', { id: 'lb-gate-text', text: LB.text.gate }), accept));
  const behind = document.activeElement;
  const hold = (event) => {
    if (event.key === 'Tab') {
      event.preventDefault();
      accept.focus();
    }
  };
  accept.addEventListener('click', () => {
    try {
      window.sessionStorage.setItem(key, 'accepted');
    } catch (error) {
      // See above.
    }
    dialog.remove();
    if (behind && behind.focus) behind.focus();
  });
  dialog.addEventListener('keydown', hold);
  dialog.addEventListener('focusout', () => window.setTimeout(() => {
    if (dialog.isConnected && !dialog.contains(document.activeElement)) accept.focus();
  }));
  document.body.append(dialog);
  accept.focus();
}

const KEYS_HELP = [
  ['Viewer', '1–4 window presets · i invert · h v mirror · r l turn · + − = zoom, fit · '
    + 'space reset · arrows move · Page Up, Page Down frame · o heat map · c contour · '
    + '[ ] its limit'],
  ['Drawing a box', 'arrows move it · shift with them: its size · Enter done · Esc cancel'],
  ['Timeline', 'space play or pause · ← → step · shift with them: ten · ↑ ↓ event · '
    + 'Home End · n next unsure step · 1–9 crop'],
  ['Attempts', '↑ ↓ former and next · Home End · Enter open'],
  ['Everywhere', 'Esc stop · Ctrl+Enter explain · / question · ? this list'],
];

// Whether single letters act as keys: people who speak to their computer switch them off.
function singleKeys() {
  return prefs.read().keys !== 'off';
}

function toggleKeys(root) {
  const open = root.querySelector('.lb-keys');
  if (open) {
    open.remove();
    if (root.keysFrom && root.keysFrom.isConnected) root.keysFrom.focus();
    return;
  }
  root.keysFrom = document.activeElement;
  const letters = el('input', { type: 'checkbox', id: 'lb-letters', checked: singleKeys() });
  letters.addEventListener('change', () =>
    prefs.write({ keys: letters.checked ? 'on' : 'off' }));
  const close = button('Close', { class: 'lb-small' }, () => toggleKeys(root));
  const panel = el('div', { class: 'lb-keys', role: 'dialog', 'aria-label': 'Keys' },
    el('h2', { text: 'Keys' }), el('dl', {}, ...KEYS_HELP.flatMap(([name, text]) =>
      [el('dt', { text: name }), el('dd', { text })])),
    el('label', { class: 'lb-check' }, letters, 'Single letters, digits and signs act as keys'),
    close);
  root.append(panel);
  close.focus();
}
