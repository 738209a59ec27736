//! The filters of `list` and `to_arrow`.

use std::sync::Arc;

use dezky::{AuditStore, ListQuery};
use pyo3::exceptions::PyTypeError;
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyInt, PyString};

use super::event::outcome;
use super::pages::ListPages;
use crate::convert::{text, timestamp, type_error, value_error};
use crate::error::{coded, exception};

/// Filters, and the maximum number of events in total.
#[derive(Clone)]
pub(crate) struct Filters {
    query: ListQuery,
    limit: Option<u64>,
}

impl Filters {
    /// Reads keyword arguments.
    pub(crate) fn read(named: Option<&Bound<'_, PyDict>>) -> PyResult<Self> {
        let query = ListQuery { limit: ListQuery::MAX_LIMIT, ..ListQuery::default() };
        let mut filters = Self { query, limit: None };
        if let Some(named) = named {
            for item in named.items() {
                let (name, value): (Bound<'_, PyString>, Bound<'_, PyAny>) = item.extract()?;
                filters.set(&name.to_cow()?, &value)?;
            }
        }
        filters.query.filter().map_err(exception)?;
        Ok(filters)
    }

    fn set(&mut self, name: &str, value: &Bound<'_, PyAny>) -> PyResult<()> {
        let query = &mut self.query;
        let place = match name {
            "action" => &mut query.action,
            "tenant_slug" => &mut query.tenant_slug,
            "partner_slug" => &mut query.partner_slug,
            "actor_id" => &mut query.actor_id,
            "actor_email" => &mut query.actor_email,
            "resource_type" => &mut query.resource_type,
            "resource_id" => &mut query.resource_id,
            "source" => &mut query.source,
            "q" => &mut query.q,
            "since" | "until" | "before" | "outcome" | "limit" if value.is_none() => return Ok(()),
            "since" => {
                query.since = Some(timestamp(value, name)?);
                return Ok(());
            }
            "until" => {
                query.until = Some(timestamp(value, name)?);
                return Ok(());
            }
            "before" => {
                query.before = Some(timestamp(value, name)?);
                return Ok(());
            }
            "outcome" => {
                query.outcome = Some(outcome(value, name)?);
                return Ok(());
            }
            "limit" => {
                self.limit = Some(limit(value)?);
                return Ok(());
            }
            _ => {
                return Err(PyTypeError::new_err(format!(
                    "{name} is not a filter: the filters are since, until, before, action, \
                     tenant_slug, partner_slug, actor_id, actor_email, resource_type, \
                     resource_id, outcome, source, q and limit"
                )));
            }
        };
        if value.is_none() {
            return Ok(());
        }
        let given = text(value, name)?;
        if given.len() > ListQuery::MAX_FILTER_BYTES {
            let problem = format!(
                "{name} has {} bytes: it must have at most {}",
                given.len(),
                ListQuery::MAX_FILTER_BYTES
            );
            return Err(coded("query_invalid", &problem));
        }
        *place = Some(given);
        Ok(())
    }

    /// The pages of the events that match.
    pub(crate) fn pages(&self, store: Arc<dyn AuditStore>) -> ListPages {
        ListPages::new(store, self.query.clone(), self.limit)
    }
}

fn limit(value: &Bound<'_, PyAny>) -> PyResult<u64> {
    if !value.is_instance_of::<PyInt>() {
        return Err(type_error("limit", "an int", value));
    }
    let limit = value.extract::<u64>().ok().filter(|limit| *limit > 0);
    limit.ok_or_else(|| value_error("limit", "must be 1 or more: leave it out for all events"))
}
