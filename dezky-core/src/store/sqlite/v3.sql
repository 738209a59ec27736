-- For how long a lease was taken, in milliseconds: one that ends later than that from now
-- was taken by a clock that was ahead. 0: by a version that did not say.
ALTER TABLE dezky_leases ADD COLUMN length_ms INTEGER NOT NULL DEFAULT 0;
