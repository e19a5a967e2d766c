// A conversation, and where it is kept: in this tab's memory; in this browser only if that was asked for.

const KEPT = 'tunnel.conversation';
const STASH = 'tunnel.stash';

function read(storage, name, user) {
  try {
    const found = JSON.parse(storage.getItem(name) ?? 'null');
    // Another person's is not shown, and not touched.
    return found?.user === user ? found : null;
  } catch {
    return null;
  }
}

function write(storage, name, value) {
  try {
    storage.setItem(name, JSON.stringify(value));
    return true;
  } catch {
    return false;
  }
}

export const kept = (user) => read(localStorage, KEPT, user);

// Whether there was room for it.
export const keep = (user, what) => write(localStorage, KEPT, { user, ...what });

export const drop = () => localStorage.removeItem(KEPT);

// For the way to the provider and back.
export const stash = (user, what) => write(sessionStorage, STASH, { user, ...what });

export function takeStash(user) {
  const found = read(sessionStorage, STASH, user);
  sessionStorage.removeItem(STASH);
  return found;
}
