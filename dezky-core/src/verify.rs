//! Verification: recomputes the whole log, names the first difference, and compares what
//! lists can show with the rows.

use std::fmt;

use serde::Serialize;

use crate::integrity::{self, chain_hash, leaf_hash};
use crate::store::{Anomaly, AuditStore, Extent, Folds, Head, ScannedRow, StoredRow};
use crate::{Error, ErrorKind, Result};

/// How many rows are held at a time.
const BATCH_ROWS: usize = 1_000;

/// What kind of difference was found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Difference {
    /// A row, or the head, says something else than was hashed.
    Altered,
    /// A row is gone.
    Missing,
    /// A row stands where another one stood.
    Reordered,
    /// A row is there that the log never took.
    Inserted,
    /// The log ends before the head that was expected.
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

/// The first difference.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// Where.
    pub seq: i64,
    /// What kind.
    pub kind: Difference,
    /// One line for a person, without values.
    pub detail: String,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "seq {}: {}: {}", self.seq, self.kind, self.detail)
    }
}

/// What verification came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verdict {
    /// How many events verified, from the log's base on.
    pub verified: u64,
    /// Where the log begins: not at 0 if its beginning was archived.
    pub base: Head,
    /// The head of what verified.
    pub head: Head,
    /// The first difference; `None` for a log that is whole.
    pub finding: Option<Finding>,
    /// Differences between the database's structure and the schema, because of which lists
    /// may not show what is stored.
    pub anomalies: Vec<Anomaly>,
}

impl Verdict {
    /// Returns the first problem as one line; `None` if the log is what was recorded and
    /// lists show it.
    pub fn problem(&self) -> Option<String> {
        let finding = self.finding.as_ref().map(ToString::to_string);
        finding.or_else(|| self.anomalies.first().map(ToString::to_string))
    }
}

/// A head that was kept elsewhere: the hash of the event at `seq`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ExpectedHead {
    /// The event's place.
    pub seq: u64,
    /// Its hash.
    pub hash: [u8; 32],
}

impl std::str::FromStr for ExpectedHead {
    type Err = Error;

    /// Reads `SEQ:HASH`, such as a verified log prints.
    fn from_str(text: &str) -> Result<Self> {
        let parts = text.split_once(':').and_then(|(seq, hash)| {
            let mut bytes = [0; 32];
            hex::decode_to_slice(hash, &mut bytes).ok()?;
            Some(Self { seq: seq.parse().ok()?, hash: bytes })
        });
        parts.ok_or_else(|| {
            Error::new(
                ErrorKind::ConfigInvalid,
                "an expected head is SEQ:HASH, a number and 64 hex digits",
            )
        })
    }
}

/// Recomputes every leaf from the live columns, derived ones included, the chain
/// and the head, in bounded memory, and names the first difference. `progress`
/// is called with the number of events verified, every thousand or so. Then compares the
/// structure of the database with its schema, and the entries of its indexes with the rows
/// ([`examine`](AuditStore::examine)).
///
/// A row that claims an erasure counts as altered: no operation of this version erases.
///
/// Events that are appended meanwhile are not looked at. Only an expected head,
/// kept outside the database, shows that a whole tail and the head's own row
/// were cut together.
///
/// # Errors
/// Those of reading the store. A log with a difference is no error but a
/// [`Verdict`] with a finding.
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

/// A row behind the head that we read: appended since, or put there.
async fn behind_head(store: &dyn AuditStore, seq: i64) -> Result<Option<Finding>> {
    let counted = seq < signed(store.state().await?.head.next_seq);
    Ok((!counted)
        .then(|| finding(seq, Difference::Inserted, "the row stands behind the log's head")))
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

/// What the rest of the log says about a break.
#[derive(Default)]
struct Evidence {
    /// Where a whole row stands that follows the last good one.
    successor: Option<i64>,
    /// Where the row stands whose content the suspect's hash covers.
    content_at: Option<i64>,
    /// Whether the row that the suspect follows is there.
    predecessor: bool,
    /// How many rows there are from the log's base on.
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

    /// The base moves only when a log's beginning is archived, which leaves its
    /// own evidence. No archive exists yet, so every other base was put there.
    fn check_base(&self) -> Option<Finding> {
        (self.base != Head::EMPTY)
            .then(|| finding(0, Difference::Missing, "the beginning of the log is gone"))
    }

    fn check_head(&self, head: Head) -> Option<Finding> {
        let at = signed(self.next.next_seq);
        if self.next.next_seq > head.next_seq {
            let at = signed(head.next_seq);
            return Some(finding(at, Difference::Altered, "the head's row counts fewer events"));
        }
        if self.next.next_seq < head.next_seq {
            // Whoever expects a later head knows that it is the end that is gone.
            let cut = self.expected.is_some_and(|e| e.seq >= self.next.next_seq);
            let kind = if cut { Difference::Cut } else { Difference::Missing };
            return Some(finding(at, kind, "the head's row counts more events"));
        }
        (self.next.hash != head.hash)
            .then(|| finding(at - 1, Difference::Altered, "the head's row has another hash"))
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

    /// Decides what was done at the first break.
    async fn explain(
        &self,
        store: &dyn AuditStore,
        suspect: Suspect,
        head: Head,
    ) -> Result<Finding> {
        let wanted = signed(self.next.next_seq);
        if suspect.seq < wanted {
            let detail = "the row stands before the log's beginning";
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

    /// Reads the whole log once more for what belongs to the break.
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
                // Not those appended since we read the head.
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

    /// No row has this place.
    fn explain_gap(&self, evidence: &Evidence) -> Finding {
        let wanted = signed(self.next.next_seq);
        match evidence.successor {
            Some(seq) => {
                let detail = format!("the event of this place stands at {seq}");
                finding(wanted, Difference::Reordered, &detail)
            }
            None => finding(wanted, Difference::Missing, "there is no row of this place"),
        }
    }

    /// The row follows the one before it, but is not what was hashed.
    fn explain_content(&self, row: &StoredRow, evidence: &Evidence) -> Finding {
        let wanted = signed(self.next.next_seq);
        if let Some(seq) = evidence.content_at {
            let detail = format!("the event of this place stands at {seq}");
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

    /// The row does not follow the one before it.
    fn explain_link(&self, row: &StoredRow, evidence: &Evidence, head: Head) -> Finding {
        let wanted = signed(self.next.next_seq);
        let whole = is_whole(row);
        if let Some(seq) = evidence.successor {
            // A genuine row in a wrong place follows another row of the log.
            let kind = if whole && evidence.predecessor || !whole && seq != wanted + 1 {
                Difference::Reordered
            } else {
                Difference::Inserted
            };
            return finding(wanted, kind, &format!("the event of this place stands at {seq}"));
        }
        if !whole {
            let detail = "the event or its hashes differ from what was recorded";
            return finding(wanted, Difference::Altered, detail);
        }
        if self.before.is_some_and(|before| before.hash == row.stored.prev_hash) {
            let detail = "the event that follows was recorded without this one";
            return finding(wanted - 1, Difference::Inserted, detail);
        }
        if self.base.next_seq + evidence.rows < head.next_seq || self.before.is_none() {
            return finding(wanted, Difference::Missing, "the event before this row is gone");
        }
        let detail = "the event that follows was recorded after another one";
        finding(wanted - 1, Difference::Altered, detail)
    }
}

/// Whether the row's own hashes and derived columns agree with its event.
fn is_whole(row: &StoredRow) -> bool {
    row.stored.hash == chain_hash(&row.stored.prev_hash, &leaf_of(row))
        && row.folds == Folds::of(&row.stored.event)
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
