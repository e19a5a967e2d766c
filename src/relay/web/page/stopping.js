// Whether a desktop really stopped working on an answer: told by how many requests it has in flight.

import { desktops, live } from './live.js';

// So long the relay's events may take to show it.
const PATIENCE = 6000;

const inFlight = (address) => desktops.get(address)?.inFlight ?? null;

// Watches a desktop from before a request until after it was stopped.
export class Watch {
  constructor(address) {
    this.address = address;
    this.most = 0;
    this.look = () => { this.most = Math.max(this.most, inFlight(address) ?? 0); };
    live.addEventListener('change', this.look);
  }

  end() {
    live.removeEventListener('change', this.look);
  }

  // "stopped" once the events show it; "gone" if the desktop is; "unknown" if they do not show it in time.
  stopped() {
    this.end();
    return new Promise((resolve) => {
      const done = (outcome) => {
        clearTimeout(timer);
        live.removeEventListener('change', look);
        resolve(outcome);
      };
      const look = () => {
        const now = inFlight(this.address);
        if (now === null) done('gone');
        else if (now < this.most) done('stopped');
        else this.most = Math.max(this.most, now);
      };
      // A request that was too short to be seen in flight is over if nothing is.
      const timer = setTimeout(() => done(inFlight(this.address) === 0 ? 'stopped' : 'unknown'), PATIENCE);
      live.addEventListener('change', look);
    });
  }
}
