-- An attempt's row is written when it is assigned and again when it ends. With room left on its
-- page the second write needs no new entry in the index.
ALTER TABLE attempts SET (fillfactor = 50);
