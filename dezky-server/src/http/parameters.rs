//! Path and query parameters, whose errors are problems.

use axum::Json;
use axum::extract::{FromRequestParts, Path};
use axum::http::request::Parts;
use dezky_core::directory::MAX_PAGE;
use dezky_core::{Error, ErrorKind};
use serde::Serialize;
use serde_json::{Value, json};

use super::problem::Problem;

/// The maximum number of parameters in a query.
const MAX_PARAMETERS: usize = 32;

/// The one parameter of the path. Text that is not UTF-8 is answered 404.
pub(crate) struct Name(pub(crate) String);

impl<S: Send + Sync> FromRequestParts<S> for Name {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        let path = Path::<String>::from_request_parts(parts, state).await;
        path.map(|Path(name)| Self(name))
            .map_err(|_| Problem::not_found("the path is not UTF-8 text"))
    }
}

/// The parameters of the query, each given once.
pub(crate) struct Parameters(Vec<(String, String)>);

impl<S: Send + Sync> FromRequestParts<S> for Parameters {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Problem> {
        let parameters = pairs(parts.uri.query().unwrap_or_default())?;
        for (index, (name, _)) in parameters.iter().enumerate() {
            if parameters[..index].iter().any(|(before, _)| before == name) {
                let name = shown(name);
                return Err(Problem::query_invalid(format!("{name} is given more than once")));
            }
        }
        Ok(Self(parameters))
    }
}

impl Parameters {
    /// The names with their values.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(name, value)| (&**name, &**value))
    }

    /// Refuses names other than `known`.
    pub(crate) fn only(&self, known: &[&str]) -> Result<(), Problem> {
        match self.iter().find(|(name, _)| !known.contains(name)) {
            None => Ok(()),
            Some((name, _)) => Err(unknown(name, &known.join(", "))),
        }
    }

    /// The value of `name`.
    pub(crate) fn get(&self, name: &str) -> Option<&str> {
        self.iter().find(|(given, _)| *given == name).map(|(_, value)| value)
    }

    /// The value of the only parameter, `true` or `false`; false without it.
    pub(crate) fn switch(&self, name: &str) -> Result<bool, Problem> {
        self.only(&[name])?;
        match self.get(name) {
            None | Some("false") => Ok(false),
            Some("true") => Ok(true),
            Some(_) => Err(Problem::query_invalid(format!("{name} must be true or false"))),
        }
    }

    /// `cursor` of a list by slug: the last slug of the page before. Documents stay, and keep
    /// their slugs, so a slug without a document never was a cursor.
    pub(crate) async fn slug_cursor(
        &self,
        is_there: impl AsyncFnOnce(&str) -> dezky_core::Result<bool>,
    ) -> Result<Option<String>, Problem> {
        let Some(slug) = self.get("cursor") else { return Ok(None) };
        if is_there(slug).await? {
            return Ok(Some(slug.to_owned()));
        }
        let what = "cursor was not issued by this list: start without one";
        Err(Error::new(ErrorKind::CursorInvalid, what).into())
    }

    /// The size of a page: `limit`, 1 to 500, 100 without it.
    pub(crate) fn page_limit(&self) -> Result<usize, Problem> {
        let Some(text) = self.get("limit") else { return Ok(100) };
        text.parse().ok().filter(|limit| (1..=MAX_PAGE).contains(limit)).ok_or_else(|| {
            Problem::query_invalid(format!("limit must be a number, 1 to {MAX_PAGE}"))
        })
    }
}

/// The names and values of a query, decoded.
fn pairs(query: &str) -> Result<Vec<(String, String)>, Problem> {
    let mut pairs = Vec::new();
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        let (Some(name), Some(value)) = (decode(name), decode(value)) else {
            return Err(Problem::query_invalid(
                "the query must be URL-encoded UTF-8 text: write a % as %25",
            ));
        };
        if pairs.len() == MAX_PARAMETERS {
            return Err(Problem::query_invalid(format!(
                "the query must have at most {MAX_PARAMETERS} parameters: leave some out"
            )));
        }
        pairs.push((name, value));
    }
    Ok(pairs)
}

/// Decodes strictly, unlike browsers: a damaged text would search for something else.
fn decode(text: &str) -> Option<String> {
    let mut rest = text.bytes();
    let mut bytes = Vec::with_capacity(text.len());
    while let Some(byte) = rest.next() {
        bytes.push(match byte {
            b'+' => b' ',
            b'%' => hex_digit(rest.next()?)? << 4 | hex_digit(rest.next()?)?,
            byte => byte,
        });
    }
    String::from_utf8(bytes).ok()
}

fn hex_digit(byte: u8) -> Option<u8> {
    char::from(byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok())
}

/// A page of documents, with the cursor of the next page if this one is full.
pub(crate) fn page<T: Serialize>(
    name: &str,
    documents: &[T],
    limit: usize,
    cursor: impl FnOnce(&T) -> String,
) -> Json<Value> {
    let next = documents.last().filter(|_| documents.len() >= limit).map(cursor);
    Json(json!({ name: documents, "nextCursor": next }))
}

/// The problem of an unknown parameter.
pub(crate) fn unknown(name: &str, known: &str) -> Problem {
    let name = shown(name);
    Problem::query_invalid(if known.is_empty() {
        format!("{name} is not a parameter: this route has none")
    } else {
        format!("{name} is not a parameter: there are {known}")
    })
}

/// The beginning of a name, for messages.
fn shown(name: &str) -> String {
    name.chars().take(40).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_query_is_decoded_strictly() {
        let of = |query: &str| pairs(query).map_err(|problem| format!("{problem:?}"));
        let pair = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        assert_eq!(of("").unwrap(), []);
        assert_eq!(of("&a&&b=&=c&").unwrap(), [pair("a", ""), pair("b", ""), pair("", "c")]);
        assert_eq!(of("q=100%25+%c3%A5=%2B").unwrap(), [pair("q", "100% å=+")]);
        for bad in ["q=%", "q=%2", "q=%zz", "q=%+1", "%ff=1", "q=%c3", "q=%C0%80"] {
            assert!(of(bad).unwrap_err().contains("URL-encoded"), "{bad}");
        }
        let many = |count| vec!["a"; count].join("&");
        assert_eq!(of(&many(32)).unwrap().len(), 32);
        assert!(of(&many(33)).unwrap_err().contains("at most 32"));
    }
}
