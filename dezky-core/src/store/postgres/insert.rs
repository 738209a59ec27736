//! Inserting rows: few as arrays in one statement, many by COPY.

use sqlx::AssertSqlSafe;

use super::transaction::PostgresTransaction;
use crate::store::codec::signed;
use crate::store::engine::{NewRow, SearchColumns};
use crate::store::sql::COLUMNS;
use crate::{Field, Result};

/// The number of rows from which COPY is faster: by a tenth with 1,000, by a quarter with 5,000.
/// With fewer, COPY waits 40 ms for a delayed acknowledgement, because sqlx leaves Nagle's
/// algorithm on and a COPY writes more than once before it reads.
const COPY_ROWS: usize = 1_000;

/// The size of the parts in which a COPY's data is sent, in bytes.
const COPY_PART_BYTES: usize = 1 << 20;

/// Inserts rows. None of their keys may exist.
pub(super) async fn insert(tx: &mut PostgresTransaction, rows: &[NewRow<'_>]) -> Result<()> {
    if rows.len() < COPY_ROWS { by_arrays(tx, rows).await } else { by_copy(tx, rows).await }
}

async fn by_arrays(tx: &mut PostgresTransaction, rows: &[NewRow<'_>]) -> Result<()> {
    let sql = format!(
        "INSERT INTO dezky_audit_events ({COLUMNS}) SELECT * FROM unnest($1::bigint[], $2::uuid[], $3::bigint[], $4::bigint[], $5::text[], $6::text[], $7::text[], $8::text[], $9::text[], $10::text[], $11::text[], $12::text[], $13::text[], $14::text[], $15::text[], $16::text[], $17::text[], $18::text[], $19::bytea[], $20::bytea[], $21::bytea[], $22::bytea[], $23::text[], $24::text[])"
    );
    let search_columns: Vec<SearchColumns> = rows.iter().map(NewRow::search_columns).collect();
    let seqs: Vec<i64> = rows.iter().map(|row| signed(row.seq)).collect::<Result<_>>()?;
    let mut query = sqlx::query(AssertSqlSafe(sql))
        .bind(seqs)
        .bind(each(rows, |row| row.event.id))
        .bind(each(rows, |row| row.event.at.as_millis()))
        .bind(each(rows, |row| row.event.received_at.as_millis()));
    for field in TEXTS {
        query = query.bind(each(rows, |row| row.event.text(field)));
    }
    query = query
        .bind(each(rows, |row| row.event.metadata.as_str()))
        .bind(each(rows, |row| row.salt().map(|salt| &salt[..])))
        .bind(each(rows, NewRow::erasure))
        .bind(each(rows, |row| &row.prev_hash[..]))
        .bind(each(rows, |row| &row.hash[..]))
        .bind(each(&search_columns, |c| c.actor_email.as_deref()))
        .bind(each(&search_columns, |c| c.search.as_str()));
    tx.execute(query).await.map(drop)
}

/// The columns with texts of the event, in their order.
const TEXTS: [Field; 13] = [
    Field::ActorType,
    Field::ActorId,
    Field::ActorEmail,
    Field::ActorIp,
    Field::Action,
    Field::Outcome,
    Field::ResourceType,
    Field::ResourceId,
    Field::ResourceName,
    Field::TenantSlug,
    Field::PartnerSlug,
    Field::Source,
    Field::ExternalId,
];

fn each<'a, R, T>(rows: &'a [R], value: impl Fn(&'a R) -> T) -> Vec<T> {
    rows.iter().map(value).collect()
}

async fn by_copy(tx: &mut PostgresTransaction, rows: &[NewRow<'_>]) -> Result<()> {
    let sql = format!("COPY dezky_audit_events ({COLUMNS}) FROM STDIN (FORMAT binary)");
    let mut parts = Vec::new();
    let mut tuples = Tuples::new();
    for row in rows {
        tuples.push(row)?;
        if tuples.bytes.len() >= COPY_PART_BYTES {
            parts.push(std::mem::take(&mut tuples.bytes));
        }
    }
    parts.push(tuples.end());
    tx.copy_in(&sql, parts).await
}

/// Rows in PostgreSQL's binary COPY format.
struct Tuples {
    bytes: Vec<u8>,
}

impl Tuples {
    fn new() -> Self {
        // Signature, no flags, no extension.
        Self { bytes: b"PGCOPY\n\xff\r\n\0\0\0\0\0\0\0\0\0".to_vec() }
    }

    fn push(&mut self, row: &NewRow<'_>) -> Result<()> {
        let (event, search_columns) = (row.event, row.search_columns());
        self.bytes.extend_from_slice(&24i16.to_be_bytes());
        self.value(Some(&signed(row.seq)?.to_be_bytes()));
        self.value(Some(event.id.as_bytes()));
        self.value(Some(&event.at.as_millis().to_be_bytes()));
        self.value(Some(&event.received_at.as_millis().to_be_bytes()));
        for field in TEXTS {
            self.value(event.text(field).map(str::as_bytes));
        }
        self.value(Some(event.metadata.as_str().as_bytes()));
        self.value(row.salt().map(|salt| &salt[..]));
        self.value(row.erasure().as_deref());
        self.value(Some(&row.prev_hash));
        self.value(Some(&row.hash));
        self.value(search_columns.actor_email.as_deref().map(str::as_bytes));
        self.value(Some(search_columns.search.as_bytes()));
        Ok(())
    }

    fn value(&mut self, value: Option<&[u8]>) {
        let len = value.map_or(-1, |v| i32::try_from(v.len()).expect("an event is bounded"));
        self.bytes.extend_from_slice(&len.to_be_bytes());
        self.bytes.extend_from_slice(value.unwrap_or_default());
    }

    fn end(mut self) -> Vec<u8> {
        self.bytes.extend_from_slice(&(-1i16).to_be_bytes());
        self.bytes
    }
}
