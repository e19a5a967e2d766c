// To be filled.
export const developersView = {};
