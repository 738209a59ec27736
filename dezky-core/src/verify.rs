//! Verification: recomputes the whole log, names the first difference, and compares the rows with
//! the contents of lists.

use std::fmt;

use serde::Serialize;

use crate::integrity::{self, chain_hash, leaf_hash};
use crate::store::engine::SearchColumns;
use crate::store::{Anomaly, AuditStore, Extent, Head, ScannedRow, StoredRow};
use crate::{Error, ErrorKind, Result};

/// The number of rows held in memory.
const BATCH_ROWS: usize = 1_000;

/// The kind of a difference.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Difference {
    /// A row, or the head, differs from what was hashed.
    Altered,
    /// A row is missing.
    Missing,
    /// A row is at the position of another one.
    Reordered,
    /// A row exists that the log never accepted.
    Inserted,
    /// The log ends before the expected head.
    Cut,
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Altered => "altered",
            Self::Missing => "missing",
            Self::Reordered => "reordered",
            Self::Inserted => "inserted",
            Self::Cut => "cut",
        })
    }
}

/// The first difference found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// The sequence number at which it was found.
    pub seq: i64,
    /// The kind of difference.
    pub kind: Difference,
    /// One line for a person, without values.
    pub detail: String,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "seq {}: {}: {}", self.seq, self.kind, self.detail)
    }
}

/// The result of a verification.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verdict {
    /// The number of verified events, from the log's base on.
    pub verified: u64,
    /// The beginning of the log; not 0 if earlier events were archived.
    pub base: Head,
    /// The head of the verified part.
    pub head: Head,
    /// The first difference; `None` if the log is intact.
    pub finding: Option<Finding>,
    /// Differences between the database's structure and the schema, which may keep lists from
    /// showing stored events.
    pub anomalies: Vec<Anomaly>,
}

impl Verdict {
    /// Returns the first problem as one line; `None` if the log is intact and lists show all of it.
    pub fn problem(&self) -> Option<String> {
        let finding = self.finding.as_ref().map(ToString::to_string);
        finding.or_else(|| self.anomalies.first().map(ToString::to_string))
    }
}

/// A head recorded elsewhere: the hash of the event at `seq`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ExpectedHead {
    /// The event's sequence number.
    pub seq: u64,
    /// The event's hash.
    pub hash: [u8; 32],
}

impl std::str::FromStr for ExpectedHead {
    type Err = Error;

    /// Parses `SEQ:HASH`, the form in which a verified log's head is printed.
    fn from_str(text: &str) -> Result<Self> {
        let parts = text.split_once(':').and_then(|(seq, hash)| {
            let mut bytes = [0; 32];
            hex::decode_to_slice(hash, &mut bytes).ok()?;
            Some(Self { seq: seq.parse().ok()?, hash: bytes })
        });
        parts.ok_or_else(|| {
            Error::new(
                ErrorKind::ConfigInvalid,
                "an expected head must be SEQ:HASH, a number and 64 hex digits",
            )
        })
    }
}

/// Recomputes every leaf from the live columns, including derived ones, then the chain and the
/// head, in bounded memory, and names the first difference. `progress` is called with the number of
/// verified events about every thousand events. Afterwards compares the database's structure with
/// its schema, and the entries of its indexes with the rows ([`examine`](AuditStore::examine)).
///
/// A row that claims an erasure counts as altered, because no operation of this version erases.
///
/// Events appended during the verification are ignored. If a whole tail was cut and the head's row
/// was adjusted, only an expected head kept outside the database reveals it.
///
/// # Errors
/// Those of reading the store. A difference in the log is not an error but a finding in the
/// [`Verdict`].
pub async fn verify(
    store: &dyn AuditStore,
    expected: Option<ExpectedHead>,
    mut progress: impl FnMut(u64),
) -> Result<Verdict> {
    let state = store.state().await?;
    let mut walk =
        ChainWalk { base: state.base, next: state.base, before: None, verified: 0, expected };
    if let Some(finding) = walk.check_base() {
        return walk.verdict(store, Some(finding)).await;
    }
    let mut from_seq = i64::MIN;
    let finding = 'log: loop {
        let rows = store.scan(from_seq, BATCH_ROWS).await?;
        let Some(last_seq) = rows.last().map(seq_of) else { break None };
        for row in rows {
            if seq_of(&row) >= signed(state.head.next_seq) && walk.next == state.head {
                break 'log behind_head(store, seq_of(&row)).await?;
            }
            if let Err(suspect) = walk.step(row) {
                break 'log Some(walk.explain(store, *suspect, state.head).await?);
            }
        }
        progress(walk.verified);
        let Some(next) = last_seq.checked_add(1) else { break None };
        from_seq = next;
    };
    let finding = finding.or_else(|| walk.check_head(state.head)).or_else(|| walk.check_expected());
    walk.verdict(store, finding).await
}

/// A row beyond the head read at the start was either appended since, or inserted.
async fn behind_head(store: &dyn AuditStore, seq: i64) -> Result<Option<Finding>> {
    let counted = seq < signed(store.state().await?.head.next_seq);
    Ok((!counted).then(|| finding(seq, Difference::Inserted, "the row is beyond the log's head")))
}

/// The chain recomputed so far.
struct ChainWalk {
    base: Head,
    next: Head,
    /// The head before the last row.
    before: Option<Head>,
    verified: u64,
    expected: Option<ExpectedHead>,
}

/// A row that does not continue the chain.
struct Suspect {
    seq: i64,
    row: ScannedRow,
}

/// Facts from the rest of the log that explain a break.
#[derive(Default)]
struct Evidence {
    /// The position of an intact row that continues the last verified one.
    successor: Option<i64>,
    /// The position of the row whose content matches the suspect's hash.
    content_at: Option<i64>,
    /// Whether the suspect's predecessor exists.
    predecessor: bool,
    /// The number of rows from the log's base on.
    rows: u64,
}

impl ChainWalk {
    fn step(&mut self, row: ScannedRow) -> Result<(), Box<Suspect>> {
        let seq = seq_of(&row);
        match &row {
            Ok(good) if seq == signed(self.next.next_seq) && self.continues(good) => {
                self.before = Some(self.next);
                self.next = Head { next_seq: self.next.next_seq + 1, hash: good.stored.hash };
                self.verified += 1;
                Ok(())
            }
            _ => Err(Box::new(Suspect { seq, row })),
        }
    }

    fn continues(&self, row: &StoredRow) -> bool {
        row.stored.prev_hash == self.next.hash
            && is_whole(row)
            && self.is_expected(row)
            && !claims_erasure(row)
    }

    fn is_expected(&self, row: &StoredRow) -> bool {
        self.expected.is_none_or(|e| e.seq != row.stored.seq || e.hash == row.stored.hash)
    }

    async fn verdict(&self, store: &dyn AuditStore, finding: Option<Finding>) -> Result<Verdict> {
        let anomalies = store.examine(Extent::Rows).await?;
        let Self { verified, base, next: head, .. } = *self;
        Ok(Verdict { verified, base, head, finding, anomalies })
    }

    /// The base moves only when the beginning of a log is archived, which leaves its own evidence.
    /// Archives don't exist yet, so any other base is forged.
    fn check_base(&self) -> Option<Finding> {
        (self.base != Head::EMPTY)
            .then(|| finding(0, Difference::Missing, "the beginning of the log is gone"))
    }

    fn check_head(&self, head: Head) -> Option<Finding> {
        let at = signed(self.next.next_seq);
        if self.next.next_seq > head.next_seq {
            let at = signed(head.next_seq);
            return Some(finding(at, Difference::Altered, "the head counts fewer events"));
        }
        if self.next.next_seq < head.next_seq {
            // If a later head is expected, the missing part is the end.
            let cut = self.expected.is_some_and(|e| e.seq >= self.next.next_seq);
            let kind = if cut { Difference::Cut } else { Difference::Missing };
            return Some(finding(at, kind, "the head counts more events"));
        }
        (self.next.hash != head.hash)
            .then(|| finding(at - 1, Difference::Altered, "the head has another hash"))
    }

    fn check_expected(&self) -> Option<Finding> {
        let expected = self.expected?;
        (expected.seq >= self.next.next_seq).then(|| {
            finding(
                signed(self.next.next_seq),
                Difference::Cut,
                "the log ends before the expected head",
            )
        })
    }

    /// Determines what was done at the first break.
    async fn explain(
        &self,
        store: &dyn AuditStore,
        suspect: Suspect,
        head: Head,
    ) -> Result<Finding> {
        let wanted = signed(self.next.next_seq);
        if suspect.seq < wanted {
            let detail = "the row is before the log's beginning";
            return Ok(finding(suspect.seq, Difference::Inserted, detail));
        }
        let row = match suspect.row {
            Err(row) if row.seq == wanted => {
                return Ok(finding(wanted, Difference::Altered, &row.problem));
            }
            Ok(row) if suspect.seq == wanted => Some(row),
            _ => None,
        };
        let evidence = self.gather(store, row.as_ref(), head).await?;
        Ok(match row {
            None => self.explain_gap(&evidence),
            Some(row) if row.stored.prev_hash == self.next.hash => {
                self.explain_content(&row, &evidence)
            }
            Some(row) => self.explain_link(&row, &evidence, head),
        })
    }

    /// Reads the whole log again for rows related to the break.
    async fn gather(
        &self,
        store: &dyn AuditStore,
        suspect: Option<&StoredRow>,
        head: Head,
    ) -> Result<Evidence> {
        let wanted = signed(self.next.next_seq);
        let mut evidence = Evidence::default();
        let mut from_seq = i64::MIN;
        loop {
            let rows = store.scan(from_seq, BATCH_ROWS).await?;
            let Some(last_seq) = rows.last().map(seq_of) else { return Ok(evidence) };
            for row in &rows {
                let seq = seq_of(row);
                // Excludes rows appended since the head was read.
                evidence.rows += u64::from((0..signed(head.next_seq)).contains(&seq));
                let Ok(row) = row else { continue };
                evidence.predecessor |=
                    suspect.is_some_and(|s| row.stored.hash == s.stored.prev_hash);
                if seq == wanted {
                    continue;
                }
                if row.stored.prev_hash == self.next.hash && is_whole(row) {
                    evidence.successor.get_or_insert(seq);
                }
                if suspect
                    .is_some_and(|s| s.stored.hash == chain_hash(&self.next.hash, &leaf_of(row)))
                {
                    evidence.content_at.get_or_insert(seq);
                }
            }
            let Some(next) = last_seq.checked_add(1) else { return Ok(evidence) };
            from_seq = next;
        }
    }

    /// No row has the next sequence number.
    fn explain_gap(&self, evidence: &Evidence) -> Finding {
        let wanted = signed(self.next.next_seq);
        match evidence.successor {
            Some(seq) => {
                let detail = format!("the event with this seq is at {seq}");
                finding(wanted, Difference::Reordered, &detail)
            }
            None => finding(wanted, Difference::Missing, "no row has this seq"),
        }
    }

    /// The row continues the chain, but its content differs from what was hashed.
    fn explain_content(&self, row: &StoredRow, evidence: &Evidence) -> Finding {
        let wanted = signed(self.next.next_seq);
        if let Some(seq) = evidence.content_at {
            let detail = format!("the event with this seq is at {seq}");
            return finding(wanted, Difference::Reordered, &detail);
        }
        let detail = if row.stored.hash != chain_hash(&self.next.hash, &leaf_of(row)) {
            "the event or its hash differs from what was recorded".to_owned()
        } else if claims_erasure(row) {
            let fields: Vec<_> = row.stored.erased.iter().map(|field| field.name()).collect();
            format!(
                "the row claims that {} was erased, but no erasure is on record",
                fields.join(", ")
            )
        } else if self.is_expected(row) {
            "a derived search column differs from the event".to_owned()
        } else {
            "the hash is not that of the expected head".to_owned()
        };
        finding(wanted, Difference::Altered, &detail)
    }

    /// The row does not continue the chain.
    fn explain_link(&self, row: &StoredRow, evidence: &Evidence, head: Head) -> Finding {
        let wanted = signed(self.next.next_seq);
        let whole = is_whole(row);
        if let Some(seq) = evidence.successor {
            // A genuine row at a wrong position follows another row of the log.
            let kind = if whole && evidence.predecessor || !whole && seq != wanted + 1 {
                Difference::Reordered
            } else {
                Difference::Inserted
            };
            return finding(wanted, kind, &format!("the event with this seq is at {seq}"));
        }
        if !whole {
            let detail = "the event or its hashes differ from what was recorded";
            return finding(wanted, Difference::Altered, detail);
        }
        if self.before.is_some_and(|before| before.hash == row.stored.prev_hash) {
            let detail = "the next event was recorded without this one";
            return finding(wanted - 1, Difference::Inserted, detail);
        }
        if self.base.next_seq + evidence.rows < head.next_seq || self.before.is_none() {
            return finding(wanted, Difference::Missing, "the event before this row is missing");
        }
        let detail = "the next event was recorded after a different one";
        finding(wanted - 1, Difference::Altered, detail)
    }
}

/// Whether the row's own hashes and derived columns match its event.
fn is_whole(row: &StoredRow) -> bool {
    row.stored.hash == chain_hash(&row.stored.prev_hash, &leaf_of(row))
        && row.search_columns == SearchColumns::of(&row.stored.event)
}

/// Whether the row claims that fields were erased. Its leaf hash proves nothing: anyone who
/// can write the database can compute the remains of an erasure from the salt. An operation
/// that erases will record it on the timeline under a reserved action (`dezky.`). No such
/// operation exists yet, so every claim is forged.
fn claims_erasure(row: &StoredRow) -> bool {
    matches!(row.evidence, integrity::Evidence::Erased(_))
}

fn leaf_of(row: &StoredRow) -> [u8; 32] {
    leaf_hash(&row.stored.event, &row.evidence)
}

fn seq_of(row: &ScannedRow) -> i64 {
    match row {
        Ok(row) => signed(row.stored.seq),
        Err(row) => row.seq,
    }
}

fn signed(seq: u64) -> i64 {
    i64::try_from(seq).unwrap_or(i64::MAX)
}

fn finding(seq: i64, kind: Difference, detail: &str) -> Finding {
    Finding { seq, kind, detail: detail.to_owned() }
}
