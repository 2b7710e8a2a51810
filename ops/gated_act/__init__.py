"""An activation of one tensor times another: the gates of MLPs."""
