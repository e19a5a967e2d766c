// Whether a desktop really stopped working on an answer: told by how many requests it has in flight.

import { desktops, live } from './live.js';

// So long the relay's events may take to show it.
const PATIENCE = 6000;

const inFlight = (address) => desktops.get(address)?.inFlight ?? null;

// From the moment at which a request is stopped: "stopped" once the events show one less in flight; "gone" if they show the desktop
// gone; "unknown" if they do not show it in time.
export function watchStop(address) {
  let most = inFlight(address) ?? 0;
  return new Promise((resolve) => {
    const done = (outcome) => {
      clearTimeout(timer);
      live.removeEventListener('change', look);
      resolve(outcome);
    };
    const look = ({ detail }) => {
      if (live.state !== 'here' || !detail.has(address)) return;
      const now = inFlight(address);
      if (now === null) done('gone');
      else if (now < most) done('stopped');
      // The request itself may be shown late.
      else most = now;
    };
    // One that was too short to be seen in flight is over if nothing is.
    const timer = setTimeout(() => done(live.state === 'here' && inFlight(address) === 0 ? 'stopped' : 'unknown'), PATIENCE);
    live.addEventListener('change', look);
  });
}
