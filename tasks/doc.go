// Package tasks is the domain: what an import is, the states it passes through,
// and the rules about who may ask for what.
//
// The record of an import is the truth about it. Workers, queue and API are
// guests of the record: a worker writes only under the epoch that its claim
// gave it, the queue carries nothing but the record's address, and every rule
// that must hold when two parties race (one outcome, one name, one token) is
// decided where the record lies, in one step. The interfaces Records, Claims
// and Backlog are that contract, seen from the three sides; package redisstore
// keeps it.
package tasks
