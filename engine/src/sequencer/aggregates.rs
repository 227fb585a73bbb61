//! What happens to aggregates: registered, built anew beside the version that answers, put in its place, dropped.
//!
//! ```text
//! group a      Install name+next (registry: building); it is filled from the view of this very commit
//! groups ...   what the filling adds; the stream folds into both versions
//! group f      the last of the filling                          name answers by the version before
//! committed    did it halt on the way? then it stays name+next, halted, and the version before goes on
//! group p      Remove the version before; Promote name+next     name answers by the next one
//! ```
//!
//! What is so already is not durable already: whoever asks again for what somebody is waiting for waits, too.
//!
//! The surprise: whether a version is exact is known only once the group that ends its filling is committed, so its place is
//! another group's.

use std::collections::BTreeMap;
use std::sync::Arc;

use tokio::sync::oneshot;

use super::tables::Changeover;
use super::{End, OnChange, Sequencer, stopped};
use crate::commit::{Phase, RegistryChange};
use crate::dataflow::Command;
use crate::engine::{RegisterError, Registered, Unavailable};
use crate::materialization::{Aggregate, AggregateId, AggregateState, Definition, Plan, Registration, plan};
use crate::source::TableState;
use crate::store::StoreError;

impl Sequencer {
    /// Installs the aggregates that were stored, now that their tables are known.
    pub(super) fn resolve_stored(&mut self, tables: Option<RegistryChange>) {
        let mut commands = Vec::new();
        let mut registry: Vec<RegistryChange> = tables.into_iter().collect();
        let mut stored = std::mem::take(&mut self.unresolved);
        if self.phase == Phase::Snapshot {
            registry.extend(promote_all(&mut stored));
        }
        for stored in stored {
            let name = stored.name.clone();
            let mut aggregate = Aggregate::restore(stored, &self.tables);
            if aggregate.state == AggregateState::Building && self.phase == Phase::Snapshot {
                // Before the first row of a new source everything is complete as it is.
                aggregate.state = AggregateState::Live;
            }
            let aggregate = Arc::new(aggregate);
            // The aggregates of a table that is being read wait for its end.
            let complete = self.is_complete(&aggregate.definition.qualified_table());
            let building = aggregate.state == AggregateState::Building;
            let filled = complete && !(building && self.reads_to_fill(&aggregate));
            if filled && !aggregate.state.is_halted() {
                commands.push(Command::Install(Arc::clone(&aggregate)));
            }
            registry.push(RegistryChange::Register { aggregate: Arc::clone(&aggregate), fill: filled, reply: None });
            self.aggregates.insert(name, aggregate);
        }
        // Also where there is nothing to install: the first commit is what publishes a Snapshot.
        let _ = self.mint(commands, registry);
    }

    pub(super) fn register(
        &mut self,
        name: String,
        definition: Definition,
        on_change: OnChange,
        reply: oneshot::Sender<Result<Registered, RegisterError>>,
    ) -> Result<(), End> {
        // A version that is being built is the newest of its name.
        let next_name = Registration::next_name(&name);
        let newest = self.aggregates.get(&next_name).or_else(|| self.aggregates.get(&name));
        let version = newest.map_or(1, |newest| newest.version + 1);
        let plan = match self.check(&name, &definition, newest, on_change) {
            Ok(Some(plan)) => plan,
            Ok(None) => {
                if let Some(newest) = newest.cloned() {
                    let shared = Arc::clone(&self.shared);
                    self.answer_once_durable(reply, RegisterError::Unavailable, move || {
                        let committed = shared.published.catalog().aggregates.get(&newest.name).cloned();
                        Ok(Registered::Unchanged(committed.unwrap_or(newest)))
                    });
                }
                return Ok(());
            }
            // To some callers it is as good as a yes: there is one of this name.
            Err(error @ RegisterError::Conflict { .. }) => {
                self.answer_once_durable(reply, RegisterError::Unavailable, || Err(error));
                return Ok(());
            }
            Err(error) => {
                let _ = reply.send(Err(error));
                return Ok(());
            }
        };
        let name = if version == 1 { name } else { next_name };
        self.build(name, version, definition, plan, reply)
    }

    /// Builds an aggregate anew from the rows, under the same definition.
    pub(super) fn rebuild(
        &mut self,
        name: &str,
        reply: oneshot::Sender<Result<Registered, RegisterError>>,
    ) -> Result<(), End> {
        let next_name = Registration::next_name(name);
        let newest = self.aggregates.get(&next_name).or_else(|| self.aggregates.get(name)).cloned();
        let planned = match &newest {
            None => Err(RegisterError::BadName),
            Some(newest) => self.plan_of(&newest.definition).map(|plan| (newest, plan)),
        };
        match planned {
            Ok((newest, plan)) => self.build(next_name, newest.version + 1, newest.definition.clone(), plan, reply),
            Err(error) => {
                let _ = reply.send(Err(error));
                Ok(())
            }
        }
    }

    /// Begins to fill an aggregate; what was being built under its name is given up.
    fn build(
        &mut self,
        name: String,
        version: u32,
        definition: Definition,
        plan: Plan,
        reply: oneshot::Sender<Result<Registered, RegisterError>>,
    ) -> Result<(), End> {
        let aggregate = Arc::new(Aggregate {
            id: AggregateId(self.next_aggregate),
            name: name.clone(),
            version,
            definition,
            plan: Arc::new(plan),
            state: AggregateState::Building,
        });
        self.next_aggregate += 1;
        if !aggregate.is_next() {
            self.never_filled.insert(aggregate.id);
        }
        let before = self.aggregates.insert(name, Arc::clone(&aggregate));
        let (done, committed) = oneshot::channel();
        // Also while its table is being read: of that reading it has missed a part.
        let reads_to_fill = self.reads_to_fill(&aggregate);
        let fill = !reads_to_fill && self.is_complete(&aggregate.definition.qualified_table());
        let mut commands: Vec<Command> = before.iter().map(|before| Command::Remove(before.id)).collect();
        commands.extend(fill.then(|| Command::Install(Arc::clone(&aggregate))));
        let mut registry: Vec<RegistryChange> =
            before.into_iter().map(|before| RegistryChange::Drop(before, None)).collect();
        registry.push(RegistryChange::Register { aggregate, fill, reply: Some(done) });
        self.mint_alone(commands, registry)?;
        self.asked_for = self.sequence;
        tokio::spawn(async move {
            let answer = match committed.await {
                Ok(aggregate) => Ok(Registered::Created(aggregate)),
                Err(_) => Err(RegisterError::Unavailable(stopped())),
            };
            let _ = reply.send(answer);
        });
        Ok(())
    }

    /// Gives up what is being built under a name, or was until it halted. A first version goes only where it was never filled:
    /// one that answered is being built, too, while its table is read anew, and is dropped by whoever may drop.
    pub(super) fn cancel(&mut self, name: &str, reply: oneshot::Sender<Result<bool, Unavailable>>) -> Result<(), End> {
        let next_name = Registration::next_name(name);
        if self.aggregates.contains_key(&next_name) {
            return self.drop_aggregate(&next_name, reply);
        }
        let first_filling = |first: &Aggregate| {
            self.never_filled.contains(&first.id) && self.state_of(first) == Some(AggregateState::Building)
        };
        if self.aggregates.get(name).is_some_and(|first| !first_filling(first)) {
            self.answer_once_durable(reply, |stopped| stopped, || Ok(false));
            return Ok(());
        }
        self.drop_aggregate(name, reply)
    }

    /// The plan of a new aggregate; `None` where the same one is registered already.
    fn check(
        &self,
        name: &str,
        definition: &Definition,
        newest: Option<&Arc<Aggregate>>,
        on_change: OnChange,
    ) -> Result<Option<Plan>, RegisterError> {
        if !plan::is_name(name) {
            return Err(RegisterError::BadName);
        }
        if self.tables.is_empty() {
            return Err(RegisterError::Unavailable(not_announced()));
        }
        if let Some(existing) = newest {
            let table = self.tables.get(&definition.qualified_table());
            let differences = existing.definition.differences(definition, table.map(|table| &table.schema));
            if differences.is_empty() {
                return Ok(None);
            }
            let opens_rows = definition.drill_through && !existing.definition.drill_through;
            let refused = match on_change {
                OnChange::Refuse => true,
                OnChange::Refine => {
                    opens_rows || differences.iter().any(|field| matches!(*field, "table" | "dimensions"))
                }
                OnChange::Rebuild => false,
            };
            if refused {
                return Err(RegisterError::Conflict { existing: Arc::clone(existing), differences });
            }
        }
        let plan = self.plan_of(definition)?;
        // A next version takes the place of one that counts already.
        let count = self.aggregates.values().filter(|aggregate| !aggregate.is_next()).count();
        if newest.is_none() && count >= self.max_aggregates {
            return Err(RegisterError::TooMany { count, max: self.max_aggregates });
        }
        Ok(Some(plan))
    }

    /// What a definition means for its table as it is now.
    fn plan_of(&self, definition: &Definition) -> Result<Plan, RegisterError> {
        let table = definition.qualified_table();
        let Some(followed) = self.tables.get(&table) else {
            return Err(RegisterError::UnknownTable { table, known: self.tables.keys().cloned().collect() });
        };
        if let TableState::Halted { code, message, remedy } = &followed.standing {
            let (code, message, remedy) = (code.clone(), message.clone(), remedy.clone());
            return Err(RegisterError::Unavailable(Unavailable { code, message, remedy }));
        }
        if !followed.schema.keeps_row_image && self.inputs.commands.is_closed() {
            return Err(RegisterError::Unavailable(cannot_be_read(&table)));
        }
        Plan::resolve(definition, &followed.schema).map_err(RegisterError::Invalid)
    }

    /// Whether the row images of a table are those of the source's position.
    fn is_complete(&self, table: &str) -> bool {
        self.tables.get(table).is_some_and(|table| table.standing == TableState::Live)
    }

    /// Whether only another reading of its table can fill the aggregate; then it is asked for.
    fn reads_to_fill(&mut self, aggregate: &Aggregate) -> bool {
        let table = self.tables.get(&aggregate.definition.qualified_table());
        let Some(table) = table.filter(|table| !table.schema.keeps_row_image) else { return false };
        self.to_read.insert(table.schema.id);
        true
    }

    pub(super) fn drop_aggregate(
        &mut self,
        name: &str,
        reply: oneshot::Sender<Result<bool, Unavailable>>,
    ) -> Result<(), End> {
        let Some(aggregate) = self.aggregates.remove(name) else {
            // Stored, and not installed before the tables are known.
            if self.unresolved.iter().any(|stored| stored.name == name) {
                let _ = reply.send(Err(not_announced()));
            } else {
                self.answer_once_durable(reply, |stopped| stopped, || Ok(false));
            }
            return Ok(());
        };
        self.never_filled.remove(&aggregate.id);
        let next = self.aggregates.remove(&Registration::next_name(name));
        let (done, committed) = oneshot::channel();
        let commands = next.iter().chain([&aggregate]).map(|gone| Command::Remove(gone.id)).collect();
        let mut registry: Vec<RegistryChange> = next.into_iter().map(|next| RegistryChange::Drop(next, None)).collect();
        registry.push(RegistryChange::Drop(aggregate, Some(done)));
        self.mint_alone(commands, registry)?;
        self.asked_for = self.sequence;
        tokio::spawn(async move {
            let _ = reply.send(committed.await.map(|()| true).map_err(|_| stopped()));
        });
        Ok(())
    }

    /// Answers that something is so already, once it is so after a crash, too: who is told that nothing changed does not ask again.
    fn answer_once_durable<T: Send + 'static, E: Send + 'static>(
        &self,
        mut reply: oneshot::Sender<Result<T, E>>,
        unavailable: fn(Unavailable) -> E,
        answer: impl FnOnce() -> Result<T, E> + Send + 'static,
    ) {
        let (mut committed, asked_for) = (self.committed.clone(), self.asked_for);
        if committed.borrow().sequence >= asked_for {
            let _ = reply.send(answer());
            return;
        }
        tokio::spawn(async move {
            let is_durable = tokio::select! {
                reached = committed.wait_for(|as_of| as_of.sequence >= asked_for) => reached.is_ok(),
                // Who asked has gone, or learned that nobody answers any more.
                () = reply.closed() => return,
            };
            let _ = reply.send(if is_durable { answer() } else { Err(unavailable(stopped())) });
        });
    }

    /// An aggregate is filled by the group that is minted next: it answers from then on, or waits for its place. One that was given
    /// up or replaced since does neither: a crash before its end is committed would leave it live where nobody puts it in its place.
    pub(super) fn filled(&mut self, id: AggregateId, change: &mut Changeover) {
        let Some(aggregate) = self.aggregates.values().find(|aggregate| aggregate.id == id) else { return };
        if aggregate.is_next() {
            self.filled_next.push_back((self.sequence + 1, id));
        } else {
            self.never_filled.remove(&id);
            change.registry.push(RegistryChange::Filled(id));
        }
    }

    /// The rows that an aggregate is filled from cannot be read. Others over the table go on: their cells are in the store.
    pub(super) fn cannot_fill(&mut self, aggregate: &Aggregate, error: &StoreError) -> Result<(), End> {
        let table = aggregate.definition.qualified_table();
        let state = AggregateState::Halted {
            code: "store_corrupt".to_owned(),
            message: format!("the rows of table {table} that it is filled from cannot be read: {error}"),
            remedy: format!("{}; nothing is lost upstream", self.read_anew(&table)),
        };
        // Nobody waits for it.
        let (reply, _) = oneshot::channel();
        let halted = RegistryChange::Halted { aggregate: aggregate.id, state, reply };
        self.mint_alone(vec![Command::Remove(aggregate.id)], vec![halted])
    }

    /// A next version whose filling is committed.
    pub(super) fn take_filled_next(&mut self, committed: u64) -> Option<AggregateId> {
        let (sequence, _) = self.filled_next.front()?;
        if *sequence > committed {
            return None;
        }
        self.filled_next.pop_front().map(|(_, id)| id)
    }

    /// Puts a next version in the place of the one before, unless it halted, or was given up or replaced meanwhile.
    pub(super) fn promote(&mut self, id: AggregateId) -> Result<(), End> {
        let next = self.aggregates.values().find(|aggregate| aggregate.id == id).cloned();
        let next = next.filter(|next| self.state_of(next) == Some(AggregateState::Building));
        let Some((next, name)) = next.and_then(|next| {
            let name = Registration::final_name(&next.name)?.to_owned();
            Some((next, name))
        }) else {
            return Ok(());
        };
        self.aggregates.remove(&next.name);
        let new = Arc::new(Aggregate { name: name.clone(), state: AggregateState::Live, ..next.as_ref().clone() });
        let old = self.aggregates.insert(name, Arc::clone(&new));
        let commands = old.iter().map(|old| Command::Remove(old.id)).collect();
        self.mint_alone(commands, vec![RegistryChange::Promote { old, new }])
    }

    /// The state of an aggregate as of the last commit; `None` where that has another one of its name, or none.
    fn state_of(&self, aggregate: &Aggregate) -> Option<AggregateState> {
        let catalog = self.shared.published.catalog();
        let committed = catalog.aggregates.get(&aggregate.name).filter(|committed| committed.id == aggregate.id)?;
        Some(committed.state.clone())
    }
}

/// Before the first row of a new source there is nothing to build beside: next versions take their places at once.
fn promote_all(stored: &mut Vec<Registration>) -> Vec<RegistryChange> {
    let names: Vec<String> =
        stored.iter().filter_map(|one| Registration::final_name(&one.name)).map(str::to_owned).collect();
    let mut gone = Vec::new();
    stored.retain(|one| {
        let replaced = names.contains(&one.name);
        if replaced {
            gone.push(one.clone());
        }
        !replaced
    });
    for next in stored.iter_mut() {
        if let Some(name) = Registration::final_name(&next.name).map(str::to_owned) {
            // Under this name nobody will finish it.
            gone.push(next.clone());
            next.name = name;
        }
    }
    let none = BTreeMap::new();
    gone.into_iter().map(|old| RegistryChange::Drop(Arc::new(Aggregate::restore(old, &none)), None)).collect()
}

fn not_announced() -> Unavailable {
    Unavailable {
        code: "starting".to_owned(),
        message: "the source has not announced its tables yet".to_owned(),
        remedy: "try again in a moment".to_owned(),
    }
}

fn cannot_be_read(table: &str) -> Unavailable {
    Unavailable {
        code: "row_image_off".to_owned(),
        message: format!(
            "table {table} keeps no row images, so it has to be read to fill an aggregate, and its source has ended"
        ),
        remedy: "restart tidemark, then register again".to_owned(),
    }
}
