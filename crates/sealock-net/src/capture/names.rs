//! The sockets that take a workload's questions for names: answered by its desk, from the address that was asked.
//!
//! A workload may ask any resolver that it likes: it hears ours. Deliberately absent: what the replies say.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Semaphore;

use super::DatagramReceiver;
use crate::dns::{Desk, Over};
use crate::task::Spawner;

const QUESTION_LIMIT: usize = 4_096; // a name, EDNS and a signature or two; what is cut off is told to be unreadable
/// Questions that wait for an upstream at once; one beyond them is dropped, as any network may do.
const WAITING_LIMIT: usize = 256;
/// How long the socket rests after an error such as «too many open files».
const ERROR_REST: Duration = Duration::from_millis(100); // ten tries a second cost nothing and recover within one

/// Answers datagrams, until dropped. An error of one never ends the socket.
///
/// # Cancel safety
/// Dropping it ends the reading; questions that wait belong to `tasks` and are still answered.
pub async fn answer_names(socket: DatagramReceiver, desk: Desk, tasks: &Spawner) {
    let socket = Arc::new(socket);
    let places = Arc::new(Semaphore::new(WAITING_LIMIT));
    let mut buffer = vec![0; QUESTION_LIMIT];
    loop {
        match socket.receive(&mut buffer).await {
            Ok(datagram) => {
                let Ok(place) = Arc::clone(&places).try_acquire_owned() else {
                    continue;
                };
                let question = buffer[..datagram.length].to_vec();
                let (desk, socket) = (desk.clone(), Arc::clone(&socket));
                tasks.spawn("dns question", async move {
                    if let Some(reply) = desk.answer(Over::Udp, &question).await {
                        let asked = datagram.destination.ip();
                        if let Err(error) = socket.reply(&reply, datagram.remote, asked) {
                            tracing::debug!(err = %error, "a dns reply was not sent");
                        }
                    }
                    drop(place);
                });
            }
            Err(error) if error.kind() == io::ErrorKind::InvalidData => {}
            Err(error) => {
                tracing::debug!(err = %error, "a dns question was not taken");
                tokio::time::sleep(ERROR_REST).await;
            }
        }
    }
}
