//! Batches without a timer: what is ready now goes together.

use tokio::sync::mpsc;

/// How often the others are let through before a batch is full enough.
const ROUNDS_MAX: usize = 32;

/// Waits for something, and takes all that can be had without waiting any further into `batch`, which
/// is empty, up to `max` items. Whoever is ready to run gets the thread first, again and again as long as that brings
/// more: a statement costs Postgres some 400 us whatever it holds, and a round over the tasks that
/// are ready costs nothing that would not be spent anyway. Alone and idle it waits for nobody.
/// `false` when every sender is gone and nothing is left.
pub async fn gather<T>(waiting: &mut mpsc::Receiver<T>, batch: &mut Vec<T>, max: usize) -> bool {
    if waiting.recv_many(batch, max).await == 0 {
        return false;
    }
    for _ in 0..ROUNDS_MAX {
        let before = batch.len();
        tokio::task::yield_now().await;
        while batch.len() < max
            && let Ok(one) = waiting.try_recv()
        {
            batch.push(one);
        }
        if batch.len() == before {
            break;
        }
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_others_are_about_to_send_comes_along() {
        let (sender, mut receiver) = mpsc::channel(16);
        let chain = async {
            // One a round: when the first is taken, the others do not exist yet.
            for n in 1..4 {
                sender.send(n).await.unwrap();
                tokio::task::yield_now().await;
            }
        };
        sender.send(0).await.unwrap();
        let mut batch = Vec::new();
        // In this order, round by round; `tokio::join!` changes it.
        let gathered = gather(&mut receiver, &mut batch, 16);
        let (is_open, ()) = futures_util::future::join(gathered, chain).await;
        assert!(is_open);
        assert_eq!(batch, [0, 1, 2, 3]);
    }

    #[tokio::test]
    async fn a_batch_has_a_bound_and_an_end() {
        let (sender, mut receiver) = mpsc::channel(16);
        for n in 0..5 {
            sender.send(n).await.unwrap();
        }
        let mut batch = Vec::new();
        assert!(gather(&mut receiver, &mut batch, 3).await);
        assert_eq!(batch, [0, 1, 2]);
        drop(sender);
        batch.clear();
        assert!(gather(&mut receiver, &mut batch, 3).await);
        assert_eq!(batch, [3, 4], "what was sent before the end");
        batch.clear();
        assert!(!gather(&mut receiver, &mut batch, 3).await);
    }
}
