//! tokio's `watch`, in its own steps: the value changes under a lock and its number with it, and only then are those woken
//! who sleep. Whoever goes to sleep says so first, and then looks at the number once more.

use std::convert::Infallible;
use std::future::poll_fn;
use std::ops::Deref;
use std::sync::Arc;
use std::task::{Poll, Waker};

use shuttle::sync::atomic::{AtomicUsize, Ordering};
use shuttle::sync::{Mutex, RwLock, RwLockReadGuard};

use crate::POISONED;

struct Channel<T> {
    value: RwLock<T>,
    /// Grows with every change.
    number: AtomicUsize,
    asleep: Mutex<Vec<Waker>>,
}

/// The end that changes the value.
pub struct Sender<T>(Arc<Channel<T>>);

/// The end that sees it.
pub struct Receiver<T> {
    channel: Arc<Channel<T>>,
    /// Number of the change that was seen last.
    seen: usize,
}

/// The value, which stays as it is meanwhile.
pub struct Ref<'a, T>(RwLockReadGuard<'a, T>);

impl<T> Deref for Ref<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.0
    }
}

/// Both ends.
pub fn channel<T>(value: T) -> (Sender<T>, Receiver<T>) {
    let sender = Sender::new(value);
    let receiver = sender.subscribe();
    (sender, receiver)
}

#[allow(clippy::expect_used)]
impl<T> Channel<T> {
    fn read(&self) -> Ref<'_, T> {
        Ref(self.value.read().expect(POISONED))
    }
}

#[allow(clippy::expect_used)]
impl<T> Sender<T> {
    /// With this value.
    pub fn new(value: T) -> Sender<T> {
        Sender(Arc::new(Channel {
            value: RwLock::new(value),
            number: AtomicUsize::new(0),
            asleep: Mutex::new(Vec::new()),
        }))
    }

    /// Another end, which has seen the value as it is.
    pub fn subscribe(&self) -> Receiver<T> {
        Receiver { channel: Arc::clone(&self.0), seen: self.0.number.load(Ordering::SeqCst) }
    }

    /// The value.
    pub fn borrow(&self) -> Ref<'_, T> {
        self.0.read()
    }

    /// Another value.
    pub fn send_replace(&self, value: T) -> T {
        let mut value = value;
        self.send_modify(|old| std::mem::swap(old, &mut value));
        value
    }

    /// Changes the value.
    pub fn send_modify(&self, change: impl FnOnce(&mut T)) {
        self.send_if_modified(|value| {
            change(value);
            true
        });
    }

    /// Changes the value, and wakes nobody where that says false.
    pub fn send_if_modified(&self, change: impl FnOnce(&mut T) -> bool) -> bool {
        let mut value = self.0.value.write().expect(POISONED);
        if !change(&mut value) {
            return false;
        }
        self.0.number.fetch_add(1, Ordering::SeqCst);
        drop(value);
        let asleep = std::mem::take(&mut *self.0.asleep.lock().expect(POISONED));
        asleep.into_iter().for_each(Waker::wake);
        true
    }
}

impl<T: Default> Default for Sender<T> {
    fn default() -> Self {
        Sender::new(T::default())
    }
}

#[allow(clippy::expect_used)]
impl<T> Receiver<T> {
    /// The value.
    pub fn borrow(&self) -> Ref<'_, T> {
        self.channel.read()
    }

    /// Waits for a change that was not seen.
    pub async fn changed(&mut self) -> Result<(), Infallible> {
        self.seen = poll_fn(|context| {
            self.channel.asleep.lock().expect(POISONED).push(context.waker().clone());
            let number = self.channel.number.load(Ordering::SeqCst);
            if number == self.seen { Poll::Pending } else { Poll::Ready(number) }
        })
        .await;
        Ok(())
    }

    /// Waits until the value is such a one; looks at it first.
    pub async fn wait_for(&mut self, mut is_such: impl FnMut(&T) -> bool) -> Result<Ref<'_, T>, Infallible> {
        loop {
            {
                let value = self.channel.read();
                self.seen = self.channel.number.load(Ordering::SeqCst);
                if is_such(&value) {
                    break;
                }
            }
            self.changed().await?;
        }
        // Under the lock still in tokio's; nobody here minds a newer one.
        Ok(self.channel.read())
    }
}
