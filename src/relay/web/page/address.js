// Where the relay is. The page may be behind a proxy that takes a prefix off: everything is asked for below the page's own address.

export const base = new URL('.', document.baseURI);

// As a client's base URL.
export const baseUrl = (path = '') => new URL(path, base).href.replace(/\/$/, '');
