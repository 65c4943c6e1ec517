//! Appends on their way to one peer, the next ones before the first are answered. The server and the simulation send through
//! these lines, each over its own kind of connection.

use std::collections::VecDeque;
use std::future::Future;
use std::time::Duration;

use futures_util::future::{Either, select};
use futures_util::{Stream, StreamExt as _};
use openraft::base::BoxStream;
use openraft::errors::{NetworkError, RPCError};
use openraft::raft::{AppendEntriesRequest, AppendEntriesResponse, StreamAppendResult};
use openraft::type_config::alias::LogIdOf;
use openraft::{OptionalSend, RaftTypeConfig};

/// Messages on their way to one peer before the first is answered. With the largest size of one, this bounds the memory too.
pub const APPEND_WINDOW: usize = 16;
/// A peer whose disk stalls answers late; after this time the stream is set up anew.
pub const APPEND_ANSWER_TIMEOUT: Duration = Duration::from_secs(5);

/// What openraft is told of one message.
pub type AppendResult<C> = Result<StreamAppendResult<C>, RPCError<C>>;

/// One message and the entries it is about.
#[derive(Debug)]
pub struct AppendPart<C: RaftTypeConfig, M> {
    /// To be sent.
    pub message: M,
    /// The entry before its first.
    pub prev: Option<LogIdOf<C>>,
    /// Its last entry, or the one before it when it has none.
    pub last: Option<LogIdOf<C>>,
}

/// A connection to one peer, which handles and answers what comes on it in order.
pub trait AppendLane<C: RaftTypeConfig>: OptionalSend {
    /// What travels.
    type Message: OptionalSend;
    /// Ends within [`APPEND_ANSWER_TIMEOUT`].
    type Answer: Future<Output = Result<AppendEntriesResponse<C>, RPCError<C>>> + OptionalSend + Unpin;

    /// A request in as many messages as it takes. `None` when it cannot be sent at all, which ends the stream.
    fn cut(&mut self, request: AppendEntriesRequest<C>) -> Option<Vec<AppendPart<C, Self::Message>>>;

    /// Hands a message on, after all before it.
    fn send(
        &mut self,
        message: Self::Message,
    ) -> impl Future<Output = Result<Self::Answer, RPCError<C>>> + OptionalSend;
}

/// Sends what comes from `input`, up to [`APPEND_WINDOW`] messages ahead of their answers.
pub fn pipelined<'s, C, L, S>(lane: L, input: S) -> BoxStream<'s, AppendResult<C>>
where
    C: RaftTypeConfig,
    L: AppendLane<C> + 's,
    S: Stream<Item = AppendEntriesRequest<C>> + OptionalSend + Unpin + 's,
{
    let pipeline = Pipeline { lane, input, ready: VecDeque::new(), sent: VecDeque::new(), end: End::Open };
    Box::pin(futures_util::stream::unfold(pipeline, |mut pipeline| async {
        let result = pipeline.next().await?;
        Some((result, pipeline))
    }))
}

struct Pipeline<C: RaftTypeConfig, L: AppendLane<C>, S> {
    lane: L,
    input: S,
    /// Cut, not yet sent.
    ready: VecDeque<AppendPart<C, L::Message>>,
    sent: VecDeque<Sent<C, L::Answer>>,
    end: End,
}

struct Sent<C: RaftTypeConfig, A> {
    answer: A,
    prev: Option<LogIdOf<C>>,
    last: Option<LogIdOf<C>>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum End {
    Open,
    /// No more requests come; answers do.
    Input,
    /// Nothing more to say.
    All,
}

impl<C, L, S> Pipeline<C, L, S>
where
    C: RaftTypeConfig,
    L: AppendLane<C>,
    S: Stream<Item = AppendEntriesRequest<C>> + Unpin,
{
    async fn next(&mut self) -> Option<AppendResult<C>> {
        loop {
            if self.end == End::All {
                return None;
            }
            while self.sent.len() < APPEND_WINDOW
                && let Some(AppendPart { message, prev, last }) = self.ready.pop_front()
            {
                match self.lane.send(message).await {
                    Ok(answer) => self.sent.push_back(Sent { answer, prev, last }),
                    Err(error) => return Some(self.failed(error)),
                }
            }
            let more = self.end == End::Open && self.ready.is_empty() && self.sent.len() < APPEND_WINDOW;
            let next = match self.sent.front_mut() {
                None if !more => return None,
                None => Either::Right(self.input.next().await),
                Some(first) if !more => Either::Left((&mut first.answer).await),
                // The answer first, when both are there.
                Some(first) => match select(&mut first.answer, self.input.next()).await {
                    Either::Left((answer, _)) => Either::Left(answer),
                    Either::Right((request, _)) => Either::Right(request),
                },
            };
            match next {
                Either::Left(answer) => return self.result(answer),
                Either::Right(None) => self.end = End::Input,
                Either::Right(Some(request)) => match self.lane.cut(request) {
                    Some(parts) => self.ready.extend(parts),
                    None => self.end = End::All,
                },
            }
        }
    }

    fn failed(&mut self, error: RPCError<C>) -> AppendResult<C> {
        self.end = End::All;
        Err(error)
    }

    /// Of the first message that is not answered yet.
    fn result(&mut self, answer: Result<AppendEntriesResponse<C>, RPCError<C>>) -> Option<AppendResult<C>> {
        let Sent { prev, last, .. } = self.sent.pop_front()?;
        Some(match answer {
            Ok(AppendEntriesResponse::Success) => Ok(Ok(last)),
            Ok(AppendEntriesResponse::Conflict) if prev.is_none() => {
                let reason = NetworkError::from_string("a conflict before the first entry");
                self.failed(RPCError::Network(reason))
            }
            Ok(response) => {
                let done =
                    matches!(&response, AppendEntriesResponse::PartialSuccess(log_id) if *log_id == last);
                if !done {
                    // What was sent after this message builds on what the peer does not have.
                    self.end = End::All;
                }
                Ok(response.into_stream_result(prev, last))
            }
            Err(error) => self.failed(error),
        })
    }
}
