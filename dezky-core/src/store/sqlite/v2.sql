-- Lists stand in the order (at, seq). Every index ends with the rowid, which is seq.
DROP INDEX IF EXISTS dezky_audit_events_at;
CREATE INDEX dezky_audit_events_at ON dezky_audit_events (at);

DROP INDEX IF EXISTS dezky_audit_events_tenant;
CREATE INDEX dezky_audit_events_tenant ON dezky_audit_events (tenant_slug, at);

DROP INDEX IF EXISTS dezky_audit_events_actor;
CREATE INDEX dezky_audit_events_actor ON dezky_audit_events (actor_id, at);

DROP INDEX IF EXISTS dezky_audit_events_action;
CREATE INDEX dezky_audit_events_action ON dezky_audit_events (action, at);
