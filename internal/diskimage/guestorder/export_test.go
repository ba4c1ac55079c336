package guestorder

// MaxRooms is maxRooms.
const MaxRooms = maxRooms

// Rooms is how many rooms no body has.
func (o *Object) Rooms() int { return len(o.rooms) }
