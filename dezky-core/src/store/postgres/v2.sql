-- Lists stand in the order (at, seq). Writers wait from here on: one that was under way
-- could not end while the indexes are built, nor the old ones be dropped before it ends.
-- Lists go on, by the old indexes.
LOCK TABLE dezky_audit_log IN EXCLUSIVE MODE;

-- On a large log these may be there already, made CONCURRENTLY while writers went on. One
-- that was not finished has the name, but serves no list.
DO $$
DECLARE
    broken text;
BEGIN
    SELECT i.indexrelid::regclass INTO broken
    FROM pg_index i
    WHERE NOT i.indisvalid AND i.indexrelid IN (
        to_regclass('dezky_audit_events_at_seq'),
        to_regclass('dezky_audit_events_tenant_seq'),
        to_regclass('dezky_audit_events_actor_seq'),
        to_regclass('dezky_audit_events_action_seq'));
    IF broken IS NOT NULL THEN
        RAISE EXCEPTION 'the index % was not finished: DROP INDEX %; then migrate', broken, broken
            USING ERRCODE = 'DZ001';
    END IF;
END $$;

CREATE INDEX IF NOT EXISTS dezky_audit_events_at_seq ON dezky_audit_events (at, seq);

CREATE INDEX IF NOT EXISTS dezky_audit_events_tenant_seq ON dezky_audit_events (tenant_slug, at, seq);

CREATE INDEX IF NOT EXISTS dezky_audit_events_actor_seq ON dezky_audit_events (actor_id, at, seq);

CREATE INDEX IF NOT EXISTS dezky_audit_events_action_seq ON dezky_audit_events (action, at, seq);

DROP INDEX IF EXISTS dezky_audit_events_at, dezky_audit_events_tenant, dezky_audit_events_actor, dezky_audit_events_action;
ALTER INDEX dezky_audit_events_at_seq RENAME TO dezky_audit_events_at;
ALTER INDEX dezky_audit_events_tenant_seq RENAME TO dezky_audit_events_tenant;
ALTER INDEX dezky_audit_events_actor_seq RENAME TO dezky_audit_events_actor;
ALTER INDEX dezky_audit_events_action_seq RENAME TO dezky_audit_events_action;
