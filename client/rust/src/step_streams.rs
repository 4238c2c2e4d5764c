//! Step streams that stay open between messages.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};

use bytes::Bytes;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tonic::body::Body;

use crate::error::{Code, Delay, Error};
use crate::memory::Frames;
use crate::pb;
use crate::rpc::{Incoming, Method, OutMessage, Transport, decode};

const METHOD: Method = Method::computing("/attention.v1.SessionService/Step");
const MOST_IDLE: usize = 16;

/// Idle streams, of which a step takes one.
#[derive(Default)]
pub(crate) struct StepStreams {
    idle: Mutex<Vec<StepStream>>,
}

impl StepStreams {
    /// Sends a message and waits for its answer. A stream that has ended before the
    /// message is replaced by a new one, once. To drop the future cancels the
    /// stream, and with it the message.
    pub(crate) async fn exchange(
        &self,
        transport: &Arc<Transport>,
        message: &OutMessage,
    ) -> Result<pb::StepResponse, Error> {
        if let Some(mut stream) = self.take_idle() {
            match stream.exchange(message).await {
                Ok(answer) => {
                    self.keep(stream);
                    return Ok(answer);
                }
                Err(error) if may_have_ended_before(&error) => {
                    // The others were opened on the same connection.
                    self.idle().clear();
                }
                Err(error) => return Err(error),
            }
        }
        let mut stream = StepStream::open(transport, message);
        let answer = stream.exchange(message).await?;
        self.keep(stream);
        Ok(answer)
    }

    fn idle(&self) -> std::sync::MutexGuard<'_, Vec<StepStream>> {
        self.idle.lock().unwrap_or_else(|e| e.into_inner())
    }

    fn take_idle(&self) -> Option<StepStream> {
        self.idle().pop()
    }

    fn keep(&self, stream: StepStream) {
        let mut idle = self.idle();
        if idle.len() < MOST_IDLE {
            idle.push(stream);
        }
    }
}

/// Whether the stream, which was there before the message, may have ended without
/// looking at it.
fn may_have_ended_before(error: &Error) -> bool {
    if error.delay() == Delay::Never {
        return false;
    }
    match error.code() {
        // The connection was lost.
        Code::Unavailable => error.reason().is_none_or(|reason| reason == "DRAINING"),
        // A stream keeps the token that it began with, which may be good no more; a
        // new one has the token of now.
        Code::Unauthenticated => true,
        _ => error.has_reason("IDLE_TOO_LONG") || error.has_reason("MEMORY_BUSY"),
    }
}

/// One call of Step.
struct StepStream {
    messages: mpsc::UnboundedSender<Frames>,
    incoming: Answers,
}

type Opening = Pin<Box<dyn Future<Output = Result<Incoming, Error>> + Send>>;

enum Answers {
    /// Headers come with the first answer.
    Opening(Opening),
    Open(Incoming),
}

impl StepStream {
    fn open(transport: &Arc<Transport>, first: &OutMessage) -> Self {
        let (messages, receiver) = mpsc::unbounded_channel();
        let body = Body::new(MessagesBody {
            messages: receiver,
            pieces: VecDeque::new(),
        });
        let (transport, bytes) = (Arc::clone(transport), first.len);
        let opening = async move { transport.open(METHOD, body, Some(bytes), None).await };
        Self {
            messages,
            incoming: Answers::Opening(Box::pin(opening)),
        }
    }

    async fn exchange(&mut self, message: &OutMessage) -> Result<pb::StepResponse, Error> {
        // Fails where the stream has ended, which reading tells.
        let _ = self.messages.send(message.frames.clone());
        if let Answers::Opening(opening) = &mut self.incoming {
            let incoming = opening.await?;
            self.incoming = Answers::Open(incoming);
        }
        let Answers::Open(incoming) = &mut self.incoming else {
            return Err(Error::malformed("a stream that is not open"));
        };
        incoming.forget_taken();
        match incoming.message().await? {
            Some(answer) => decode(answer),
            None => Err(Error::local(
                Code::Unavailable,
                "the stream ended without an answer",
            )),
        }
    }
}

/// The body of the call: messages as they are sent. It ends when the stream is
/// dropped.
struct MessagesBody {
    messages: mpsc::UnboundedReceiver<Frames>,
    pieces: VecDeque<Bytes>,
}

impl http_body::Body for MessagesBody {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<http_body::Frame<Bytes>, Infallible>>> {
        loop {
            if let Some(piece) = self.pieces.pop_front() {
                return Poll::Ready(Some(Ok(http_body::Frame::data(piece))));
            }
            match self.messages.poll_recv(context) {
                Poll::Ready(Some(frames)) => self.pieces = frames.0,
                Poll::Ready(None) => return Poll::Ready(None),
                Poll::Pending => return Poll::Pending,
            }
        }
    }
}

/// The deadline is that of each message.
pub(crate) async fn exchange_by(
    streams: &StepStreams,
    transport: &Arc<Transport>,
    message: &OutMessage,
    deadline: Instant,
) -> Result<pb::StepResponse, Error> {
    crate::retry::within(deadline, streams.exchange(transport, message)).await
}
