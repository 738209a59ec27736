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
}

impl Messages {
    /// Checks that the answer is a stream.
    pub(crate) fn of(response: reqwest::Response) -> Self {
        assert_eq!(response.status(), 200, "{response:?}");
        assert_eq!(response.headers()["content-type"], "text/event-stream");
        assert_eq!(response.headers()["cache-control"], "no-store");
        Self { response, rest: Vec::new() }
    }

    /// The next message, also one without data; `None` at the end, or if the connection broke.
    pub(crate) async fn next(&mut self) -> Option<Message> {
        loop {
            if let Some(end) = self.rest.windows(2).position(|two| two == b"\n\n") {
                let message: Vec<u8> = self.rest.drain(..end + 2).collect();
                return Some(parse(std::str::from_utf8(&message).unwrap()));
            }
            self.rest.extend(self.response.chunk().await.ok()??);
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
