//! A reader of server-sent events.

/// A message of a stream.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Message {
    pub(crate) id: Option<String>,
    pub(crate) event: Option<String>,
    pub(crate) data: String,
}

/// A stream, read message by message.
pub(crate) struct Messages {
    response: reqwest::Response,
    rest: Vec<u8>,
    searched: usize,
}

impl Messages {
    /// Checks that the answer is a stream.
    pub(crate) fn of(response: reqwest::Response) -> Self {
        assert_eq!(response.status(), 200, "{response:?}");
        assert_eq!(response.headers()["content-type"], "text/event-stream");
        assert_eq!(response.headers()["cache-control"], "no-store");
        Self { response, rest: Vec::new(), searched: 0 }
    }

    /// The next message, also one without data; `None` at the end, or if the connection broke.
    pub(crate) async fn next(&mut self) -> Option<Message> {
        loop {
            let unsearched = &self.rest[self.searched..];
            if let Some(end) = unsearched.windows(2).position(|two| two == b"\n\n") {
                let rest = self.rest.split_off(self.searched + end + 2);
                let message = std::mem::replace(&mut self.rest, rest);
                self.searched = 0;
                return Some(parse(std::str::from_utf8(&message).unwrap()));
            }
            // Not searched again.
            self.searched = self.rest.len().saturating_sub(1);
            self.rest.extend_from_slice(&self.response.chunk().await.ok()??);
        }
    }

    /// The next message with data.
    pub(crate) async fn next_data(&mut self) -> Option<Message> {
        loop {
            let message = self.next().await?;
            if !message.data.is_empty() {
                return Some(message);
            }
        }
    }
}

fn parse(text: &str) -> Message {
    let mut message = Message::default();
    for line in text.lines() {
        match line.split_once(": ") {
            Some(("id", value)) => message.id = Some(value.to_owned()),
            Some(("event", value)) => message.event = Some(value.to_owned()),
            Some(("data", value)) => message.data += value,
            _ => {}
        }
    }
    message
}
