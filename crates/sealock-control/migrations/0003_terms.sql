-- How each provider wants to be chosen, and whether it wants callers to stay with their provider: the owner's word counts.
ALTER TABLE registrations ADD COLUMN terms TEXT NOT NULL DEFAULT '{}';
ALTER TABLE registrations ADD COLUMN sticky INTEGER NOT NULL DEFAULT 0;
