// To be filled.
export const usageView = {};
