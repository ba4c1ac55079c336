// Package tasks is the domain: what an import and an export are, the states they pass
// through, and the rules about who may ask for what. They are the two kinds of task, which
// share record, queue, states and journal; "import" stands for both where nothing else is
// said.
//
// The record of an import is the truth about it. Workers, queue and API are
// guests of the record: a worker writes only under the epoch that its claim
// gave it, the queue carries nothing but the record's address, and every rule
// that must hold when two parties race (one outcome, one name, one token) is
// decided where the record lies, in one step. The interfaces Records, Claims
// and Backlog are that contract, seen from the three sides, and Journal and Outbox are for
// those who follow what happens; package redisstore keeps it.
package tasks
