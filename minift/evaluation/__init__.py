"""How good is it: functions of rows and of functions."""
