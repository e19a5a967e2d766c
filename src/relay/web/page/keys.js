// To be filled.
export const keysView = {};
